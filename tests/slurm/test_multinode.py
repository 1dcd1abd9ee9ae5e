"""One model trained by four processes on two nodes of a real SLURM, undisturbed, preempted, and with one that dies."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.processes import started

from robolearn.runs.run import status

pytestmark = [pytest.mark.slow]

MODEL = """
policy=diffusion policy.down_dims=[8,16] policy.diffusion_step_embed_dim=8 scheduler.num_warmup_steps=0 device=cpu
num_workers=0 dataset=pusht_keypoints dataset.root=my_keypoints env=none batch_size=8 log_freq=1 save_freq=10
"""
NODES = """
hydra/launcher=slurm_multinode hydra.launcher.nodes=2 hydra.launcher.tasks_per_node=2 hydra.launcher.gpus_per_node=0
hydra.launcher.cpus_per_task=1
"""


def line(text: str) -> str:
    return " ".join(text.split())


def losses(run: Path) -> list[float]:
    return [json.loads(text)["train/loss"] for text in (run / "metrics.jsonl").read_text().splitlines()]


def only_run(sweep: Path) -> Path | None:
    return next((path.parent for path in sweep.glob("*/status.json")), None)


def until(test, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


def at_step(sweep: Path, step: int) -> bool:
    found = only_run(sweep)
    return found is not None and (found / "metrics.jsonl").exists() and len(losses(found)) >= step


@contextmanager
def launched(cluster: dict[str, str], folder: Path, command: str) -> Iterator[Callable[[], tuple[int, str]]]:
    """A sweep that runs beside the block; gives what waits for its end and tells its status and its words."""
    log = folder / "launcher.log"
    with log.open("wb") as file, started(command, cwd=folder, env=cluster, stdout=file, stderr=file) as launcher:
        yield lambda: (launcher.wait(400), log.read_text())


@pytest.fixture
def alone(run, folder: Path) -> list[float]:
    """The losses of one process."""
    run(line(f"robolearn-train {MODEL} seed=1 offline.steps=60 output_dir=alone"))
    return losses(folder / "alone")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_preempted_run_of_four_processes_learns_what_one_does(
    alone: list[float], cluster: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = folder / "sweep"
    command = line(f"robolearn-train -m {NODES} {MODEL} seed=1 offline.steps=60 hydra.sweep.dir={sweep}")
    with launched(cluster, folder, command) as end:
        until(lambda: at_step(sweep, 5), 200)
        run = only_run(sweep)
        assert run is not None
        job = (status(run) or {})["job"]
        subprocess.run(["scancel", "--signal=USR2", job], env=cluster, check=True, timeout=30)
        code, told = end()
    assert code == 0, told
    found = status(run) or {}
    assert (found["state"], found["step"]) == ("finished", 60)
    assert found["first_step"] >= 5
    assert losses(run) == pytest.approx(alone, rel=1e-3)


@pytest.mark.timeout(600)
def test_a_dead_process_ends_the_job_with_an_error(cluster: dict[str, str], folder: Path) -> None:
    sweep = folder / "sweep"
    command = line(f"robolearn-train -m {NODES} {MODEL} seed=1 offline.steps=100000 hydra.sweep.dir={sweep}")
    with launched(cluster, folder, command) as end:
        until(lambda: at_step(sweep, 3), 200)
        run = only_run(sweep)
        assert run is not None
        os.kill(process(2, str((status(run) or {})["job"])), signal.SIGKILL)
        code, told = end()
    assert code == 1
    assert "another of the 4 processes exited without an error message" in told
    assert (status(run) or {})["state"] == "failed"


def process(rank: int, job: str) -> int:
    """The Python process of a rank of a job."""
    wanted = {f"SLURM_PROCID={rank}", f"SLURM_JOB_ID={job}"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((folder / "environ").read_text(errors="replace").split("\0"))
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if wanted <= variables and "submitit.core._submit" in words:
            return int(folder.name)
    raise AssertionError(f"no process {rank} of job {job}")
