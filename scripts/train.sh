#!/usr/bin/env bash
# What `make train` runs: collect demonstrations of xArm lift, train on them, and compare with the untrained policy; or,
# with a dataset, train and evaluate on that, at full size where there is a GPU.
set -euo pipefail
BIN=${BIN:-.venv/bin}
dataset=$1
shift
stage() { printf '\n[%d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$1"; }
folder=outputs/make_train_$(date +%Y%m%d_%H%M%S)

if [[ -n $dataset ]]; then
  data=("dataset.repo_id=$dataset" dataset.download=true)
  [[ -d $dataset ]] && data=("dataset.root=$dataset")
  recipe=diffusion_pusht_cpu steps=20000
  "$BIN/python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' &&
    recipe=diffusion_pusht_reflected steps=60000 && data+=(eval.n_videos=4)
  "$BIN/robolearn-train" "+experiment=$recipe" "${data[@]}" "output_dir=$folder" "$@"
else
  recipe=first_run task=xarm_lift episodes=200 steps=5000
  story="a script lifts xArm's block"
  observed=(env.obs_type=state env.features_map.state=observation.environment_state)
  if ! "$BIN/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("gym_xarm") is None)'; then
    echo "xArm's simulator is not installed here (docs/environments.md), so PushT is learned, which takes longer."
    recipe=first_run_pusht task=pusht episodes=300 steps=20000
    story="a script pushes the T onto its target"
    observed=(env.obs_type=environment_state_agent_pos)
  fi
  demonstrations=data/${task}_demonstrations
  data=("dataset.root=$demonstrations")
  stage "1/3 Demonstrations: $story, $episodes times."
  "$BIN/robolearn-collect" "env=$task" "${observed[@]}" "out=$demonstrations" "episodes=$episodes"
  stage "2/3 The policy before any training, to compare with."
  mkdir -p "$folder"
  "$BIN/robolearn-train" "+experiment=$recipe" "${data[@]}" "output_dir=$folder/untrained" "$@" \
    optimizer.lr=0 offline.steps=1 > "$folder/untrained.log" 2>&1 || { cat "$folder/untrained.log"; exit 1; }
  stage "3/3 Training, and the same episodes again."
  "$BIN/robolearn-train" "+experiment=$recipe" "${data[@]}" "output_dir=$folder/trained" "$@"
  stage "Done."
  "$BIN/python" "$(dirname "$0")/compare_runs.py" "$folder/untrained" "$folder/trained"
  folder=$folder/trained
fi
cat <<END

The run is in $folder:
  videos       $folder/eval/*/grid.mp4
  curves       $BIN/tensorboard --logdir $folder
  checkpoint   $folder/checkpoints/last
Go on:
  $BIN/robolearn-train +experiment=$recipe ${data[*]} output_dir=$folder offline.steps=$steps
  $BIN/robolearn-eval checkpoint=$folder eval.n_episodes=100
END
[[ -z $dataset ]] || exit 0
echo "  $BIN/robolearn-dataset show $demonstrations"
echo "  $BIN/robolearn-collect env=$task out=data/${task}_images episodes=200   # with images; see docs/datasets.md"
