#!/usr/bin/env bash
# What `make train` runs: collect demonstrations of PushT, train on them, and compare with the untrained policy; or,
# with a dataset, train and evaluate on that, at full size where there is a GPU.
set -euo pipefail
BIN=${BIN:-.venv/bin}
dataset=$1
shift
folder=outputs/make_train_$(date +%Y%m%d_%H%M%S)

if [[ -n $dataset ]]; then
  data=("dataset.repo_id=$dataset" dataset.download=true)
  [[ -d $dataset ]] && data=("dataset.root=$dataset")
  recipe=diffusion_pusht_cpu
  "$BIN/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' && recipe=diffusion_pusht_fast
  "$BIN/robolearn-train" "+experiment=$recipe" "${data[@]}" "output_dir=$folder" "$@"
else
  demonstrations=data/pusht_demonstrations
  data=("dataset.root=$demonstrations")
  recipe=first_run
  echo "1/3 Demonstrations: a script pushes the T onto its target, 300 times."
  "$BIN/robolearn-collect" env=pusht env.obs_type=environment_state_agent_pos "out=$demonstrations" episodes=300
  echo "2/3 The policy before any training, to compare with."
  mkdir -p "$folder"
  "$BIN/robolearn-train" +experiment=first_run "${data[@]}" "output_dir=$folder/untrained" "$@" \
    optimizer.lr=0 offline.steps=1 > "$folder/untrained.log" 2>&1 || { cat "$folder/untrained.log"; exit 1; }
  echo "3/3 Training, and the same episodes again."
  "$BIN/robolearn-train" +experiment=first_run "${data[@]}" "output_dir=$folder/trained" "$@"
  "$BIN/python" scripts/compare_runs.py "$folder/untrained" "$folder/trained"
  folder=$folder/trained
fi
cat <<END

The run is in $folder:
  videos       $folder/eval/*/grid.mp4
  curves       $BIN/tensorboard --logdir $folder
  checkpoint   $folder/checkpoints/last
Go on:
  $BIN/robolearn-train +experiment=$recipe ${data[*]} output_dir=$folder offline.steps=20000
  $BIN/robolearn-eval checkpoint=$folder eval.n_episodes=100
END
[[ -z $dataset ]] || exit 0
echo "  $BIN/robolearn-dataset show $demonstrations"
echo "  $BIN/robolearn-collect out=data/pusht_images episodes=200   # with images; see docs/datasets.md"
