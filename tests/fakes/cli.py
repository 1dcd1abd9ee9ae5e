"""The console scripts as processes, at sizes that take seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fakes import processes

ROOT = Path(__file__).resolve().parents[2]

_TINY = """
policy=diffusion policy.down_dims=[8,16] policy.diffusion_step_embed_dim=8 policy.spatial_softmax_num_keypoints=4
policy.num_inference_steps=2 scheduler.num_warmup_steps=0 device=cpu batch_size=2 num_workers=0 seed=3
env=pusht env.episode_length=10 eval.n_episodes=2 eval.batch_size=2 eval.n_videos=0
log_freq=1 save_freq=100 eval_freq=2
"""
TINY = _TINY.split()


def run(module: str, *argv: str, status: int = 0, cwd: Path | None = None) -> str:
    """Run ``robolearn.cli.<module>`` to its end; what it printed, both streams together."""
    command = [sys.executable, "-m", f"robolearn.cli.{module}", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    done = processes.run(command, stderr=subprocess.STDOUT, env=environment, cwd=cwd)
    assert done.returncode == status, done.stdout
    return done.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
