"""The short form of scripts/kill_test.py: two kills, one of them while a checkpoint is written."""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from fakes import processes
from fakes.datasets import write_dataset
from fakes.training import Line, trained

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_test.py"
SHORT = {
    "offline": ["offline.steps=40", "eval_freq=20", "env.episode_length=5", "policy.down_dims=[8,16]", "use_ema=true"],
    "online": ["--online", "online.steps=40", "env.episode_length=8", "eval_freq=0"],
}


@pytest.mark.pusht
@pytest.mark.parametrize(
    "phase", [pytest.param("offline", marks=pytest.mark.slow), pytest.param("online", marks=pytest.mark.long)]
)
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, phase: str) -> None:
    dataset = write_dataset(tmp_path / "dataset", episodes=3, length=20)
    command = [
        sys.executable,
        str(SCRIPT),
        str(dataset),
        "--kills",
        "2",
        *SHORT[phase],
        f"dataset.cache_dir={tmp_path / 'cache'}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    done = processes.run(command, env=environment, seconds=550)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal after 2 kills" in done.stdout


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_test", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compared(tmp_path: Path, **options: Any) -> list[str]:
    """What the script finds to differ between a run and one with other options."""
    trained(tmp_path / "whole", ema=True, policy=Line())
    trained(tmp_path / "killed", ema=True, **{"policy": Line()} | options)
    return _script().compare(tmp_path / "whole", tmp_path / "killed")


def test_equal_runs_are_found_equal(tmp_path: Path) -> None:
    assert compared(tmp_path) == []


def test_other_weights_are_found(tmp_path: Path) -> None:
    problems = compared(tmp_path, lr=0.051)
    assert "model.safetensors: policy.line.weight differs" in problems
    assert "train.safetensors: policy.line.weight differs" in problems
    assert any(problem.startswith("state.pt: optimizer") for problem in problems)
    assert any(problem.startswith("metrics.jsonl differs") for problem in problems)


def test_another_state_of_a_generator_is_found(tmp_path: Path) -> None:
    problems = compared(tmp_path, policy=Line(at={12: lambda: torch.rand(1)}), log=12)
    assert "state.pt: rng.processes[0].torch differs" in problems


def test_another_last_step_is_found(tmp_path: Path) -> None:
    assert compared(tmp_path, steps=11) == ["last checkpoints are 00000012 and 00000011"]
