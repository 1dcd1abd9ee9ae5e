#!/usr/bin/env bash
# What `make train` runs: train and evaluate a diffusion policy on PushT, at full size where there is a GPU.
set -euo pipefail
BIN=${BIN:-.venv/bin}
dataset=$1
shift
if [[ -z $dataset ]]; then
  echo "Say what to train on: make train DATASET=path/to/a/LeRobot/dataset, or DATASET=lerobot/pusht to download it." >&2
  exit 2
fi
if [[ -d $dataset ]]; then
  data=("dataset.root=$dataset")
else
  data=("dataset.repo_id=$dataset" dataset.download=true)
fi
recipe=diffusion_pusht_cpu
"$BIN/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' && recipe=diffusion_pusht_fast
folder=outputs/make_train_$(date +%Y%m%d_%H%M%S)
"$BIN/robolearn-train" "+experiment=$recipe" "${data[@]}" "output_dir=$folder" "$@"
cat <<END

The run is in $folder:
  videos       $folder/eval/*/grid.mp4
  curves       $BIN/tensorboard --logdir $folder
  checkpoint   $folder/checkpoints/last
Go on:
  $BIN/robolearn-eval checkpoint=$folder eval.n_episodes=100
  $BIN/robolearn-train policy=diffusion env=pusht ${data[*]}
END
