"""Sweeps on a real SLURM: the page's commands, interruptions of every kind, and a study whose launcher dies."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import processes
from fakes.docs import BLOCK, smaller

from robolearn.runs.run import status
from robolearn.sweeps.report import read

pytestmark = [pytest.mark.slow, pytest.mark.pusht]

ROOT = Path(__file__).resolve().parents[2]
TRAIN = "robolearn-train -m dataset=pusht_keypoints dataset.root=my_keypoints env.obs_type=environment_state_agent_pos"
CLUSTER = "hydra/launcher=slurm hydra.launcher.gpus_per_node=0 hydra.launcher.array_parallelism=2"


def commands() -> list[str]:
    """Those of docs/sweeps.md that need a cluster."""
    blocks = BLOCK.findall((ROOT / "docs/sweeps.md").read_text())
    text = "\n".join(block for skipped, block in blocks if "tests/slurm" in skipped)
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


def small(command: str) -> str:
    parallel = " hydra.launcher.array_parallelism=2" if "launcher=slurm" in command else ""
    return smaller(command).replace("-m ", f"-m{parallel} ", 1) if parallel else command


def test_commands_of_the_page(run, folder: Path) -> None:
    assert len(commands()) == 4
    for command in commands():
        run(small(command))
    sweep = read(folder / "multirun/second")
    assert sweep.counts() == {"finished": 8}
    # The first grid was one array, and what was finished is not submitted again.
    jobs = {path.name.split("_")[0] for path in (folder / "multirun/second/.submitit").glob("[0-9]*_[0-9]*")}
    assert len(jobs) == 2
    assert {run.overrides["seed"] for run in sweep.runs if run.folder} == {"1", "2", "3", "4"}
    assert (folder / "multirun/second.html").stat().st_size > 10_000
    assert read(folder / "multirun/study").counts() == {"finished": 4}
    assert (folder / "multirun/study/study.db").is_file()


REFUSED = {
    "partition": (
        "hydra.launcher.partition=gpus",
        "hydra.launcher.partition=gpus: there is no such partition; there are main (the default), low.",
    ),
    "request": ("hydra.launcher.gpus_per_node=9", "SLURM refuses this request (Requested node configuration is not"),
    "nodes": ("hydra.launcher.nodes=9 batch_size=9", "SLURM refuses this request"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_cluster_does_not_have_is_refused_in_a_sentence(run, folder: Path, name: str) -> None:
    option, sentence = REFUSED[name]
    err = run(f"{TRAIN} {CLUSTER} {option} seed=1,2 hydra.sweep.dir=sweep", status=2).stderr
    assert sentence in err
    assert err.count("\n") == 1
    assert not (folder / "sweep").exists()


def test_a_job_that_cannot_begin_is_told_with_its_log(run, folder: Path) -> None:
    setup = "'hydra.launcher.setup=[\"echo no such module >&2; exit 3\"]'"
    done = run(f"{TRAIN} {CLUSTER} {setup} seed=1 hydra.sweep.dir=sweep", status=1)
    assert "1 of 1 runs did not finish" in done.stdout
    (failed,) = read(folder / "sweep").runs
    assert (failed.state, failed.overrides["seed"]) == ("failed", "1")
    assert failed.log
    assert failed.log.read_text().startswith("no such module")


@pytest.mark.long
def test_a_job_preempted_while_it_starts_resumes(cluster: dict[str, str], folder: Path) -> None:
    command = smaller(f"{TRAIN} {CLUSTER} hydra.launcher.partition=low seed=1 hydra.sweep.dir=sweep")
    log = folder / "log"
    with log.open("w") as told, processes.started(command, cwd=folder, env=cluster, stdout=told, stderr=told) as sweep:
        queue = ["squeue", "--noheader", "--partition=low", "--states=RUNNING", "--format=%N"]
        wait(lambda: subprocess.check_output(queue, env=cluster), 120)
        node = subprocess.check_output(queue, env=cluster, text=True).strip()
        other = ["sbatch", "--partition=main", f"--nodelist={node}", "--exclusive", "--output=/dev/null", "--wrap=true"]
        subprocess.run(other, env=cluster, check=True, stdout=subprocess.DEVNULL)
        assert sweep.wait(300) == 0, log.read_text()
    assert read(folder / "sweep").counts() == {"finished": 1}


@pytest.mark.long
@pytest.mark.timeout(1600)  # minutes on a quiet machine, much longer on a busy one
def test_a_disturbed_sweep_ends_as_an_undisturbed_one(run) -> None:
    command = f"{sys.executable} {ROOT}/scripts/sweep_test.py my_keypoints --seeds 2 --limit 700"
    done = run(command, seconds=1500)
    ends = re.findall(r"(crash|kill|preempt|time-out) +(\w+) +(\d+) +equal", done.stdout)
    assert {kind: (state, int(processes) > 1) for kind, state, processes in ends} == {
        "crash": ("failed", True),
        "kill": ("dead", True),
        "preempt": ("finished", True),
        "time-out": ("finished", True),
    }


@pytest.mark.long
def test_a_study_resumes_after_the_death_of_its_launcher(run, cluster: dict[str, str], folder: Path) -> None:
    study = folder / "study"
    ranges = "'optimizer.lr=tag(log,interval(1e-5,1e-3))' hydra/sweeper=optuna hydra.sweeper.n_jobs=2"
    command = smaller(f"{TRAIN} {ranges} hydra.sweeper.n_trials=3 hydra.sweep.dir={study} {CLUSTER}")
    command = command.replace("offline.steps=2", "offline.steps=40")
    with processes.started(command, cwd=folder, env=cluster):
        wait(lambda: len(list(study.glob("*/status.json"))) == 2, 300)
    begun = sorted(path.parent.name for path in study.glob("*/status.json"))
    out = run(command)
    assert "0 finished trials; 3 more are to come, 2 of them begun before" in out.stdout + out.stderr
    assert len(list(study.glob("*/status.json"))) == 3
    # Those that were at work went on undisturbed: by the jobs that they had.
    assert all((status(study / name) or {})["first_step"] == 0 for name in begun)
    assert [json.loads(line)["step"] for line in (study / begun[0] / "metrics.jsonl").read_text().splitlines()]
    assert read(study).counts() == {"finished": 3}
    assert len(list((study / ".submitit").glob("*/*_submitted.pkl"))) == 3


def wait(test, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.2)
