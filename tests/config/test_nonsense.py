"""Values that make no sense are refused by their key before anything is written."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import processes
from fakes.cli import ROOT
from fakes.line_env import FILES, SMALL

from robolearn.cli import dataset, sweep
from robolearn.config.compose import Job
from robolearn.config.preflight import check
from robolearn.config.schema import TrainConfig
from robolearn.config.validate import check_roots, check_targets
from robolearn.errors import UserError

Own = Callable[[dict[str, str]], list[str]]
Compose = Callable[..., list[Job]]


def key_of(act: Callable[..., Any], *arguments: Any) -> str | None:
    with pytest.raises(UserError) as refusal:
        act(*arguments)
    assert list(Path.cwd().iterdir()) == []
    return refusal.value.key


@pytest.mark.parametrize(
    "option",
    [
        "save_freq=-3",
        "eval_freq=-1",
        "seed=99999999999999999999",
        "num_workers=100000",
        "batch_size=1000000000",
        "grad_clip_norm=nan",
        "ema.decay=2",
        "ema.power=inf",
        "policy.beta_start=nan",
        "policy.beta_end=1e400",
        "policy.horizon=1000000",
        "policy.down_dims[1]=1000000",
        "scheduler.num_warmup_steps=-10",
        "env.fps=nan",
        "env.observation_width=1000000000",
        "env.features_map.pixels=[1]",
        "dataset.max_host_gb=nan",
        "dataset.tolerance_s=-inf",
        "eval.batch_size=1000000",
        "checkpoints.keep_last=0",
        "offline._target_=-3",
    ],
)
def test_values_out_of_range(composed: Compose, option: str) -> None:
    key, _, value = option.partition("=")
    typed = ["policy.down_dims=[8,1000000]"] if "[1]" in key else [option]
    [job] = composed(*typed)
    assert key in [error.key for error in [*check_roots(TrainConfig, job.cfg), *check_targets(job.cfg)]], value


@pytest.mark.parametrize("key", ["checkpoints", "ema", "param_groups"])
def test_nodes_that_cannot_be_left_out(composed: Compose, key: str) -> None:
    assert key_of(composed, f"{key}=null") == key


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["offline.steps=0"], "offline.steps"),
        (["checkpoints.metric=nonsense"], "checkpoints.metric"),
        (["optimizer.lr=-1"], "optimizer.lr"),
        (["optimizer.lr=inf"], "optimizer.lr"),
        (["optimizer.momentum=-2"], "optimizer.momentum"),
        (["+param_groups.policy.lr=-1"], "param_groups.policy.lr"),
        (["+param_groups.policy.lr=1e30"], "param_groups.policy.lr"),
        ([f"output_dir={'x' * 5000}"], "output_dir"),
    ],
)
def test_what_only_the_parts_can_tell(composed: Compose, own: Own, argv: list[str], key: str) -> None:
    assert key_of(check, composed(*own(FILES), *SMALL, *argv)) == key


def test_a_batch_and_weights_that_memory_lacks(composed: Compose, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = composed(*own(FILES), *SMALL, "batch_size=1000")
    check(jobs)
    monkeypatch.setattr("robolearn.config.memory_check.free_device_memory", lambda device: 1000)
    assert key_of(check, jobs) == "batch_size"
    monkeypatch.setattr("robolearn.config.memory_check.free_device_memory", lambda device: 1)
    assert key_of(check, jobs) == "policy"


@pytest.mark.parametrize(
    "swept", ["seed=range(0)", "seed=range(1,100000)", "seed=range(1,1000) batch_size=range(1,1000)"]
)
def test_sweeps_of_no_jobs_or_of_too_many(composed: Compose, own: Own, swept: str) -> None:
    argv = swept.split()
    assert key_of(composed, *own(FILES), *SMALL[:2], "-m", *argv) == argv[-1].split("=")[0]


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (dataset.main, ["convert", "here", "there", "--to", "v9"]),
        (dataset.main, ["show", "here", "--episode", "first"]),
        (dataset.main, ["paint", "here"]),
        (sweep.main, ["--html"]),
    ],
)
def test_arguments_end_in_one_sentence(
    main: Callable[..., None], argv: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capfd.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.slow
@pytest.mark.pusht
def test_a_draw_of_nonsense(tmp_path: Path) -> None:
    """The short form of ``scripts/try_nonsense.py``."""
    command = [sys.executable, ROOT / "scripts/try_nonsense.py", "--policies", "diffusion", "--envs", "pusht"]
    command += ["--tries", "60", "--limit", "60", "--out", tmp_path / "tries.json"]
    done = processes.run(command, seconds=600, stderr=subprocess.STDOUT)
    tries = json.loads((tmp_path / "tries.json").read_text())
    assert [one for one in tries if one["offences"]] == []
    assert (done.returncode, len(tries)) == (0, 60)
