"""Overrides, state and metrics of the runs in a sweep's folder, whether it is running or finished.

Nothing here imports torch, and only small files are read, so that a thousand runs take seconds.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from robolearn.config.run_name import canonical
from robolearn.errors import UserError, did_you_mean
from robolearn.runs.run import holds_run, status
from robolearn.sweeps import launch_failures
from robolearn.system import slurm

DEAD_AFTER_S = 60.0
"""Age of a heartbeat from which a run counts as dead, unless the queue has its job; six heartbeats are missing then."""

STATES = ("finished", "running", "pending", "interrupted", "failed", "dead")
SEED = "seed"
METRIC, LOSS = "eval/success_rate", "train/loss"
DEPTH = 3  # of run folders below the sweep's, for users' own hydra.sweep.subdir


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep.

    Attributes:
        folder: None for one that has not started; it does not exist where the job failed before the run started.
        overrides: Values by key, as they were given.
        state: One of `STATES`. A run whose job is in the queue again is pending; one whose status is "running", but
            has no heartbeat and no job, is dead.
        step: Updates done, of `steps`; None where unknown.
        eta_s: Seconds left at the speed since it started or resumed.
        last: The metric's newest value.
        best: The metric's best value.
        error: The first line of the exception that ended it.
        log: The file with the details.
    """

    folder: Path | None
    overrides: dict[str, str]
    state: str
    step: int | None = None
    steps: int | None = None
    eta_s: float | None = None
    last: float | None = None
    best: float | None = None
    error: str | None = None
    log: Path | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name if self.folder else "-"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        overrides: Their values of the other keys that vary.
        values: The metric's last value of each finished run.
        mean: Of these.
        low: With `high` the 95 % interval of the mean by Student's t; None for fewer than two values.
    """

    overrides: dict[str, str]
    values: list[float]
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sweep:
    """All runs of a folder; `keys` are those whose values differ between them."""

    folder: Path
    metric: str
    minimize: bool
    runs: list[SweepRun]
    keys: list[str] = field(default_factory=list)

    def groups(self) -> list[Group]:
        """Runs grouped over their seeds, the best group first."""
        members: dict[tuple[str, ...], list[SweepRun]] = {}
        keys = [key for key in self.keys if key != SEED]
        for run in self.runs:
            members.setdefault(tuple(run.overrides.get(key, "") for key in keys), []).append(run)
        groups = []
        for values, runs in members.items():
            known = [run.last for run in runs if run.state == "finished" and run.last is not None]
            groups.append(Group(dict(zip(keys, values, strict=True)), known, *interval(known)))
        sign = 1 if self.minimize else -1
        return sorted(groups, key=lambda group: math.inf if group.mean is None else sign * group.mean)

    def counts(self) -> dict[str, int]:
        """How many runs are in each state that occurs."""
        counts = {state: sum(run.state == state for run in self.runs) for state in STATES}
        return {state: count for state, count in counts.items() if count}


def read(folder: Path, metric: str | None = None, minimize: bool = False) -> Sweep:
    """Read a sweep.

    Args:
        folder: As given by ``hydra.sweep.dir``.
        metric: A scalar of ``metrics.jsonl``, those of evaluations also without ``eval/``; by default the metric of
            the checkpoints, or the loss where there were no evaluations.
        minimize: Whether smaller is better.

    Raises:
        UserError: There is no such folder, or no sweep in it.
    """
    folders = list(_run_folders(folder, DEPTH)) if folder.is_dir() else []
    planned = _planned(folder / "multirun.yaml")
    if not folders and not planned and not any(launch_failures.read(folder)):
        raise UserError(_no_sweep(folder), key=str(folder))
    lines = {path: metric_lines(path) for path in folders}
    if metric is None:
        metric, minimize = _default_metric(folders, lines.values(), minimize)
    elif "/" not in metric:
        metric = f"eval/{metric}"
    _check_metric(metric, lines.values())
    queue = slurm.queue() if slurm.is_available() else None
    sign = 1 if minimize else -1
    runs = [_run(path, lines[path], metric, sign, queue) for path in folders]
    started = [run.overrides for run in runs]
    runs += [run for run in _failed_before_start(folder) if run.overrides not in started]
    started = [run.overrides for run in runs]
    runs += [SweepRun(None, overrides, "pending") for overrides in planned if overrides not in started]
    keys = varying([run.overrides for run in runs])
    runs.sort(key=lambda run: [_natural(run.overrides.get(key, "")) for key in keys])
    return Sweep(folder, metric, minimize, runs, keys)


def varying(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ, the seed last."""
    keys = dict.fromkeys(key for each in overrides for key in each)
    different = [key for key in keys if len({each.get(key) for each in overrides}) > 1]
    return sorted(different, key=lambda key: key == SEED)


def interval(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The mean and its 95 % interval by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return (values[0] if values else None), None, None
    from scipy.special import stdtrit  # the quantile of scipy.stats.t, which takes four times as long to import

    quantile = float(stdtrit(len(values) - 1, 0.975))
    mean, half = fmean(values), quantile * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def metric_lines(folder: Path) -> list[dict[str, Any]]:
    """The complete lines of a run's ``metrics.jsonl``."""
    try:
        text = (folder / "metrics.jsonl").read_bytes()
    except OSError:
        return []
    # Most lines have losses only, and there may be very many.
    evaluated = [line for line in text.splitlines() if b'"eval/' in line]
    return list(_parsed(evaluated or text.splitlines()[-200:]))


def curve(folder: Path, metric: str, points: int = 200) -> list[tuple[int, float]]:
    """(step, value) of a scalar, subsampled to about `points` points."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return []
    name = f'"{metric}"'.encode()
    values = _values(list(_parsed(line for line in lines if name in line)), metric)
    every = max(1, len(values) // points)
    return [*values[:-1:every], *values[-1:]]


def _run(
    folder: Path, lines: Sequence[Mapping[str, Any]], metric: str, sign: int, queue: Mapping[str, str] | None
) -> SweepRun:
    values = _values(lines, metric)
    found = status(folder) or {}
    state = _state(found, queue)
    # The status is written every ten seconds; a killed run may have logged later steps.
    step = max(known) if (known := [each["step"] for each in (found, *lines[-1:]) if "step" in each]) else None
    error, log = None, None
    if state in ("failed", "dead"):
        error = found.get("error") or "exited without an error message: its heartbeat stopped"
        log = _log(folder, found, state)
    best = min((value for _, value in values), key=lambda value: sign * value, default=None)
    return SweepRun(
        folder,
        _overrides(folder),
        state,
        step,
        found.get("steps"),
        _eta(found) if state == "running" else None,
        values[-1][1] if values else None,
        best,
        error,
        log,
    )


def _state(found: Mapping[str, Any], queue: Mapping[str, str] | None) -> str:
    state = found.get("state", "pending")
    job_state = (queue or {}).get(str(found.get("job")))
    if state == "interrupted":
        return "pending" if job_state else state
    if state == "running" and time.time() - found["time"] > DEAD_AFTER_S:
        return "dead" if job_state is None else "running" if job_state == "RUNNING" else "pending"
    return state


def _eta(found: Mapping[str, Any]) -> float | None:
    done = found["step"] - found.get("first_step", 0)
    if not found.get("steps") or done <= 0:
        return None
    return max(0.0, (found["steps"] - found["step"]) * (found["time"] - found["since"]) / done)


def _log(folder: Path, found: Mapping[str, Any], state: str) -> Path | None:
    """The run's own log; that of its job, where the run could not write why it ended."""
    own = sorted(folder.glob("*.log"))
    job = found.get("job")
    of_job = sorted(folder.parent.glob(f".submitit/{job}/*_log.err")) if job else []
    order = [*of_job, *own] if state == "dead" else [*own, *of_job]
    return order[0] if order else None


def _overrides(folder: Path) -> dict[str, str]:
    try:
        return canonical(json.loads((folder / "run.json").read_text())["overrides"])
    except (OSError, ValueError, KeyError):
        return {}


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    for child in sorted(folder.iterdir()):
        if child.name.startswith(".") or not child.is_dir():
            continue
        if holds_run(child):
            yield child
        elif depth > 1:
            yield from _run_folders(child, depth - 1)


def _planned(file: Path) -> list[dict[str, str]]:
    """The runs of the newest grid, started or not; none where a sampler chooses runs one after the other."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from robolearn.config.compose import grid

    try:
        hydra = yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["hydra"]
        if not hydra["sweeper"]["_target_"].endswith("BasicSweeper"):
            return []
        texts = [f"{key}={value}" for key, value in (hydra["sweeper"].get("params") or {}).items()]
        parsed = OverridesParser.create().parse_overrides(texts + hydra["overrides"]["task"])
        return [canonical(job) for job in grid(parsed)]
    except (OSError, yaml.YAMLError, KeyError, TypeError, HydraException):
        return []


def _failed_before_start(folder: Path) -> list[SweepRun]:
    """Runs whose jobs ended before the run had a folder."""
    return [
        SweepRun(Path(each["folder"]), canonical(each["overrides"]), "failed", error=each["error"], log=log)
        for each in launch_failures.read(folder)
        for log in [Path(each["log"])]
    ]


def _default_metric(
    folders: Sequence[Path], lines: Iterable[Sequence[Mapping[str, Any]]], minimize: bool
) -> tuple[str, bool]:
    if not any(name.startswith("eval/") for each in lines for line in each[-1:] for name in line):
        return LOSS, True
    for folder in folders[:1]:
        config = yaml.load((folder / "config.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return f"eval/{config['checkpoints']['metric']}", minimize
    return METRIC, minimize


def _check_metric(metric: str, lines: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    names = {name for each in lines for line in each for name in line} - {"step", "time"}
    if names and metric not in names:
        bare = [name.removeprefix("eval/") for name in names]
        close = did_you_mean(metric.removeprefix("eval/"), bare)
        raise UserError(
            f"--metric {metric}: no run has logged it{close}; there are {', '.join(sorted(bare))}.", key="--metric"
        )


def _values(lines: Sequence[Mapping[str, Any]], metric: str) -> list[tuple[int, float]]:
    return [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]


def _parsed(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:  # being written, or cut off by a kill
            continue


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text


def _no_sweep(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: there is no such folder; give the one of a sweep, as in multirun/<date>/<time>."
    if holds_run(folder):
        return f"{folder} is the folder of one run; give the folder of the sweep, {folder.parent}."
    inside = sorted(path.parent for path in folder.glob("*/*/multirun.yaml"))
    below = f"; there is one in {inside[-1]}" if inside else ""
    return f"{folder} holds no sweep{below}."
