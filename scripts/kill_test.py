#!/usr/bin/env python
"""Kill a training run with SIGKILL again and again, and see that it ends as one that was never killed.

    python scripts/kill_test.py DATASET_DIR [--kills 20] [--seed 0] [--online] [robolearn-train overrides ...]

Half of the kills come at a random moment of training, half while a checkpoint is being written. In the end the
weights, the optimizer's state, the logged losses and, with --online, the collected episodes of the two runs must be
equal, bit for bit.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

TINY = """
policy=diffusion policy.down_dims=[16,32] policy.spatial_softmax_num_keypoints=8 policy.num_inference_steps=2
env=pusht env.episode_length=20 eval.n_episodes=1 eval.batch_size=1 eval.n_videos=0 eval_freq=100
device=cpu batch_size=4 log_freq=5 save_freq=5 offline.steps=150 scheduler.num_warmup_steps=5
"""

TINY_ONLINE = """
policy=tdmpc policy.image_encoder_hidden_dim=4 policy.state_encoder_hidden_dim=16 policy.mlp_dim=16
policy.cem_iterations=2 policy.n_gaussian_samples=16 policy.n_pi_samples=4 policy.n_elites=4
env=pusht env.episode_length=20 eval.n_episodes=1 eval.batch_size=1 eval.n_videos=0 eval_freq=100
device=cpu batch_size=4 log_freq=5 save_freq=5 offline.steps=20
online=default online.steps=130 online.steps_between_rollouts=7 online.env_seed=0 online.buffer_capacity=100
online.buffer_seed_size=30 online.rollout_n_episodes=2 online.rollout_batch_size=2
"""


def main() -> int:
    """Run both and compare; 1 when they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--online", action="store_true", help="kill a run that collects episodes")
    arguments, overrides = parser.parse_known_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        tiny = TINY_ONLINE if arguments.online else TINY
        command = [f"dataset.root={arguments.dataset.resolve()}", *tiny.split(), *overrides]
        finish(command, whole)
        resumed = [kill_once(command, killed, i % 2 == 1) for i in range(arguments.kills)]
        finish(command, killed)
        report(resumed)
        problems = compare(whole, killed)
    print("\n".join(problems) if problems else f"equal after {arguments.kills} kills")
    return int(bool(problems))


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start or resume a run."""
    call = [sys.executable, "-m", "robolearn.cli.train", *command, f"output_dir={folder}"]
    return subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(command: list[str], folder: Path) -> None:
    """Let a run come to its end."""
    process = start(command, folder)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}: {errors[-2000:]}")


def kill_once(command: list[str], folder: Path, saving: bool) -> tuple[str, int]:
    """Start the run, kill it, and say what it was doing and the step of its last checkpoint."""
    process = start(command, folder)
    before = last_step(folder)
    deadline = time.monotonic() + 120
    while last_step(folder) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if saving:
        while not writing(folder) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(random.uniform(0, 0.02))
    else:
        time.sleep(random.uniform(0, 0.3))
    doing = "saving" if writing(folder) else "training"
    ended = process.poll() is not None
    process.kill()
    _, errors = process.communicate(timeout=120)  # until its workers have ended, too
    if ended and process.returncode != 0:
        raise SystemExit(f"the run failed by itself: {errors[-2000:]}")
    return "ended before" if ended else doing, last_step(folder)


def writing(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any((folder / "checkpoints").glob(".0*"))


def last_step(folder: Path) -> int:
    """The step of the newest whole checkpoint, 0 where there is none."""
    return max((int(path.name) for path in (folder / "checkpoints").glob("[0-9]*")), default=0)


def report(kills: list[tuple[str, int]]) -> None:
    """One line for each kill."""
    for i, (doing, step) in enumerate(kills, start=1):
        print(f"kill {i:2}: while {doing:8}, resumed from step {step}")


def compare(whole: Path, killed: Path) -> list[str]:
    """What differs between two runs that should be equal."""
    problems = []
    one, other = whole / "checkpoints/last", killed / "checkpoints/last"
    if one.resolve().name != other.resolve().name:
        return [f"last checkpoints are {one.resolve().name} and {other.resolve().name}"]
    names = [name for name in ("model.safetensors", "train.safetensors") if (one / name).exists()]
    for name in names:
        a, b = load_file(one / name), load_file(other / name)
        problems += [f"{name}: {key} differs" for key in a if not torch.equal(a[key], b[key])]
    a, b = (torch.load(path / "state.pt", weights_only=True) for path in (one, other))
    for key in ("optimizer", "schedule", "ema", "rng", "collector"):
        problems += differing(a.get(key), b.get(key), f"state.pt: {key}")
    episodes = [{file.name: file.read_bytes() for file in (path / "replay").glob("0*")} for path in (whole, killed)]
    if episodes[0] != episodes[1]:
        problems.append(f"collected episodes differ: {sorted(episodes[0])} and {sorted(episodes[1])}")
    losses = [logged(path / "metrics.jsonl") for path in (whole, killed)]
    if losses[0] != losses[1]:
        problems.append(f"metrics.jsonl differs: {losses[0]} and {losses[1]}")
    return problems


def logged(path: Path) -> list[tuple[Any, ...]]:
    """Step, losses and evaluation of each line, without what depends on the clock."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("step", "train/loss", "train/grad_norm", "eval/avg_sum_reward", "online/avg_sum_reward")
    return [tuple(line.get(key) for key in keys) for line in lines]


def differing(a: Any, b: Any, path: str) -> list[str]:
    """Where two nested states differ."""
    if isinstance(a, dict):
        return [text for key in a for text in differing(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple):
        return [text for i, (x, y) in enumerate(zip(a, b, strict=True)) for text in differing(x, y, f"{path}[{i}]")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [f"{path} differs"]


if __name__ == "__main__":
    sys.exit(main())
