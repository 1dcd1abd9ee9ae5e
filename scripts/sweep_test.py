#!/usr/bin/env python
"""A sweep on a real SLURM in which runs crash, are killed, pre-empted and time out; in the end all are as if none had.

    python scripts/slurm_cluster.py --nodes 4 -- python scripts/sweep_test.py DATASET_DIR [--seeds 4] [--limit 1800]
        [--keep FOLDER]

DATASET_DIR has keypoints, as lerobot/pusht_keypoints. Two learning rates times the seeds are trained as one array. When
it has ended the same command is given again, and then the whole sweep once more in peace: weights, optimizer and losses
of both must be equal, bit for bit. Of the cluster a partition ``low`` is used that ``main`` pre-empts. Nothing waits
longer than the limit, and what was started is ended with this script.
"""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from kill_test import compare

from robolearn.runs.run import status
from robolearn.sweeps.report import SweepRun, read

RATES = ("0.0001", "0.0003")
STEPS, PAUSE_AT, PAUSE_S = 60, 30, 600

# A policy that fails, or waits for what is to happen to it, where a file says so; no configuration names the files.
FAULTY = f"""
import os
import signal
import time
from pathlib import Path

from robolearn.policies.diffusion import DiffusionPolicy


class Faulty(DiffusionPolicy):
    def __init__(self, *arguments, label, **options):
        super().__init__(*arguments, **options)
        self.label = label

    def before_step(self, step):
        super().before_step(step)
        folder = Path(os.environ["FAULTS"])
        if step == {PAUSE_AT} and (folder / f"crash-{{self.label}}").exists():
            raise RuntimeError("the gripper is on fire")
        reached = folder / f"reached-{{self.label}}"
        if step == {PAUSE_AT} and (folder / f"pause-{{self.label}}").exists() and not reached.exists():
            reached.touch()
            interrupts, end = signal.getsignal(signal.SIGUSR2).__self__, time.monotonic() + {PAUSE_S}
            while not interrupts.pending and time.monotonic() < end:
                time.sleep(0.1)
"""

SETTINGS = f"""
policy=diffusion policy._target_=faulty.Faulty +policy.label='${{seed}}-${{optimizer.lr}}' policy.down_dims=[16,32]
policy.num_inference_steps=2 dataset=pusht_keypoints env=pusht env.obs_type=environment_state_agent_pos
env.episode_length=20 eval.n_episodes=1 eval.batch_size=1 eval.n_videos=0 eval_freq={STEPS} device=cpu batch_size=8
num_workers=0 log_freq=5 save_freq=20 offline.steps={STEPS} scheduler.num_warmup_steps=5 optimizer.lr={",".join(RATES)}
hydra/launcher=slurm hydra.launcher.partition=low hydra.launcher.gpus_per_node=0 hydra.launcher.array_parallelism=2
hydra.launcher.timeout_min=10 hydra.launcher.signal_delay_s=20 +hydra.launcher.additional_parameters.exclusive=true
"""


@dataclass
class Trouble:
    """What happens to one run.

    Args:
        label: The run, as seed and learning rate.
        kind: crash, kill, preempt or time-out.
        done: Whether it has happened.
    """

    label: str
    kind: str
    done: bool = False

    @property
    def file(self) -> str:
        """The name of the file that brings it about, or makes the run wait for it."""
        return f"{'crash' if self.kind == 'crash' else 'pause'}-{self.label}"


@dataclass
class Test:
    """The sweep's folder, how it is started, and what is to happen."""

    folder: Path
    dataset: Path
    seeds: int
    limit: float
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def sweep(self) -> Path:
        """The sweep that is disturbed."""
        return self.folder / "sweep"

    def launch(self, name: str) -> tuple[int, float]:
        """Bring the sweep in a folder of this name to its end, or start it again; its status and the seconds it took.

        Raises:
            TimeoutError: It did not end within the limit.
        """
        begun = time.monotonic()
        with self._launcher(name) as sweep:
            while sweep.poll() is None:
                self._disturb()
                if time.monotonic() - begun > self.limit:
                    raise TimeoutError(f"the sweep in {self.folder / name} did not end in {self.limit:.0f} s")
                time.sleep(0.2)
        return sweep.returncode, time.monotonic() - begun

    @contextlib.contextmanager
    def _launcher(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        seeds = ",".join(map(str, range(1, self.seeds + 1)))
        where = [f"dataset.root={self.dataset.resolve()}", f"seed={seeds}", f"hydra.sweep.dir={self.folder / name}"]
        paths = os.pathsep.join([str(self.folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        environment = {**os.environ, "FAULTS": str(self.folder / "faults"), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "robolearn.cli.train", "-m", *SETTINGS.split(), *where]
        # Not this script's own outputs: whoever reads those would wait for the launcher if this script was killed.
        with tempfile.TemporaryFile() as log:
            sweep = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
            try:
                yield sweep
            finally:
                sweep.kill()
                sweep.wait()
                log.seek(0)
                sys.stderr.write(log.read().decode())
                if jobs := [path.name for path in (self.folder / name / ".submitit").glob("[0-9]*_[0-9]*")]:
                    subprocess.run(["scancel", "--quiet", *jobs], timeout=60)

    def _disturb(self) -> None:
        """Let happen what is to happen to the runs that are ready for it."""
        for trouble in self.troubles:
            if not trouble.done and (self.folder / "faults" / f"reached-{trouble.label}").exists():
                ACTS[trouble.kind](self.run(trouble.label))
                trouble.done = True

    def run(self, label: str) -> SweepRun:
        """The run of a label."""
        return next(run for run in read(self.sweep).runs if self.label(run) == label)

    @staticmethod
    def label(run: SweepRun) -> str:
        """How the policy calls a run."""
        return f"{run.overrides['seed']}-{float(run.overrides['optimizer.lr'])}"


def kill(run: SweepRun) -> None:
    """End a run's process as the system does when memory runs out."""
    os.kill(_told(run)["pid"], signal.SIGKILL)


def preempt(run: SweepRun) -> None:
    """Ask for the whole node of a run on the partition that goes first."""
    node = _queue(run, "%N")
    where = ["--partition=main", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
    subprocess.run(["sbatch", *where, "--wrap=sleep 1"], check=True, stdout=subprocess.DEVNULL, timeout=60)


def time_out(run: SweepRun) -> None:
    """Bring a run's time limit near: between one and two minutes from now, because it is in whole ones."""
    minutes = int(_queue(run, "%M").split(":")[-2])
    command = ["scontrol", "update", f"JobId={_told(run)['job']}", f"TimeLimit={minutes + 2}"]
    subprocess.run(command, check=True, timeout=60)


def _queue(run: SweepRun, shown: str) -> str:
    command = ["squeue", "--noheader", f"--format={shown}", "--jobs", _told(run)["job"]]
    return subprocess.check_output(command, text=True, timeout=60).strip()


def _told(run: SweepRun) -> dict[str, Any]:
    assert run.folder
    return status(run.folder) or {}


ACTS: dict[str, Callable[[SweepRun], None]] = {"kill": kill, "preempt": preempt, "time-out": time_out}


def main() -> int:
    """Run all, print what became of each run, and compare; 1 when something is not as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seeds", type=int, default=4, help="4: five of eight runs are disturbed; 2: all four")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that each of the three sweeps may take")
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="sweep_test_"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is ended too
    try:
        return run(folder.resolve(), arguments.dataset, arguments.seeds, arguments.limit)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, dataset: Path, seeds: int, limit: float) -> int:
    """The whole test in a folder."""
    (folder / "faults").mkdir(parents=True)
    (folder / "faulty.py").write_text(FAULTY)
    kinds = ["crash", "kill", "preempt", "time-out", *["preempt"] * (seeds > 2)]
    labels = [f"{seed}-{float(rate)}" for seed in range(1, seeds + 1) for rate in RATES]
    test = Test(folder, dataset, seeds, limit, [Trouble(*pair) for pair in zip(labels, kinds, strict=False)])
    for trouble in test.troubles:
        (folder / "faults" / trouble.file).touch()

    ended_with, seconds = test.launch("sweep")
    print(f"The sweep ended with status {ended_with} after {seconds:.0f} s.\n", flush=True)
    _wait_for_the_dead(test)
    _show(test.sweep)
    problems = _problems_of_the_first(test, ended_with)
    ended = {Test.label(each): each for each in read(test.sweep).runs}

    for file in (folder / "faults").iterdir():
        file.unlink()
    before = {each.folder: _written(each) for each in ended.values() if each.state == "finished"}
    ended_with, seconds = test.launch("sweep")
    problems += [f"started again the sweep ended with {ended_with}"] * bool(ended_with)
    print(f"\nStarted again it took {seconds:.0f} s.\n", flush=True)
    _show(test.sweep)
    problems += [f"{path} was done twice" for path, stamp in before.items() if path and stamp != _stamp(path)]

    ended_with, seconds = test.launch("peace")
    problems += [f"the undisturbed sweep ended with {ended_with}"] * bool(ended_with)
    print(f"\nThe same sweep in peace took {seconds:.0f} s.\n", flush=True)
    rows = [("run", "what happened", "ended as", "processes", "weights, optimizer and losses")]
    for run in read(test.sweep).runs:
        found = compare(folder / "peace" / run.name, run.folder) if run.folder else ["it has no folder"]
        problems += [f"{run.name}: {text}" for text in found]
        kind = next((trouble.kind for trouble in test.troubles if trouble.label == Test.label(run)), "-")
        was = ended[Test.label(run)].state
        rows.append((run.name, kind, was, str(_processes(run)), "differ" if found else "equal"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\n".join("  ".join(f"{t:<{w}}" for t, w in zip(row, widths, strict=True)).rstrip() for row in rows))
    print("\n".join(["", *problems]) if problems else f"\nAll {len(rows) - 1} runs are as if nothing had happened.")
    return int(bool(problems))


def _problems_of_the_first(test: Test, status: int) -> list[str]:
    problems = [] if status == 1 else [f"the disturbed sweep ended with {status} instead of 1"]
    expected = {"crash": "failed", "kill": "dead"}
    for run in read(test.sweep).runs:
        kind = next((trouble.kind for trouble in test.troubles if trouble.label == test.label(run)), "")
        if run.state != (state := expected.get(kind, "finished")):
            problems.append(f"{run.name} is {run.state} instead of {state}")
        if kind in ("preempt", "time-out") and _processes(run) < 2:
            problems.append(f"{run.name} was not interrupted")
        if kind == "crash" and not (run.log and "the gripper is on fire" in run.log.read_text()):
            problems.append(f"{run.name} has no traceback in its log")
    return problems


def _wait_for_the_dead(test: Test) -> None:
    """The heartbeat tells a killed run from a slow one."""
    end = time.monotonic() + 90
    while any(run.state == "running" for run in read(test.sweep).runs) and time.monotonic() < end:
        time.sleep(2)


def _processes(run: SweepRun) -> int:
    """How many processes worked on a run, by its log."""
    logs = sorted(run.folder.glob("*.log")) if run.folder else []
    return 1 + sum(log.read_text().count("Resumed from") for log in logs)


def _written(run: SweepRun) -> int:
    assert run.folder
    return _stamp(run.folder)


def _stamp(folder: Path) -> int:
    return (folder / "metrics.jsonl").stat().st_mtime_ns


def _show(folder: Path) -> None:
    command = [sys.executable, "-m", "robolearn.cli.sweep", str(folder), "--metric", "avg_sum_reward"]
    subprocess.run(command, check=True)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
