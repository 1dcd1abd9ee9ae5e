"""Submitit's launchers for resumable sweeps: finished runs are not submitted again, and a dead job ends no other.

Hydra composes and submitit submits. Added here: the result of a finished run is read from its folder, a job that an
earlier launcher left in the queue is waited for instead of submitted twice, and the queue tells a killed job from a
slow one.
"""

import logging
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, LocalQueueConf
from omegaconf import DictConfig, OmegaConf, open_dict

from robolearn.cli.entry import exit_with
from robolearn.errors import UserError, first_line, one_line, with_class
from robolearn.sweeps import launch_failures
from robolearn.system import slurm

log = logging.getLogger(__name__)

POLL_S = 2.0
MISSING_POLLS = 5
"""Polls in a row with a job neither in the queue nor with a result on disk, after which it counts as dead."""


@dataclass
class LocalConf(LocalQueueConf):
    """Keys of ``hydra/launcher=local``."""

    _target_: str = "hydra_plugins.robolearn.launchers.LocalLauncher"
    array_parallelism: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="robolearn_local", node=LocalConf(), provider="robolearn")


@dataclass
class LaunchedRun:
    """A run of this launch, with its job and its result.

    Attributes:
        overrides: As Hydra gave them.
        index: Hydra's job number.
        config: Composed of them.
        folder: The run's folder.
        job: Submitit's job; None before it is submitted.
        missing_polls: Polls in a row in which the job was missing.
        result: What Hydra gets; None until the run has ended.
        duplicates: Positions in the launch that have these overrides.
    """

    overrides: list[str]
    index: int
    config: DictConfig
    folder: Path
    job: Any = None
    missing_polls: int = 0
    result: JobReturn | None = None
    duplicates: list[int] = field(default_factory=list)

    def end(self, value: Any, status: JobStatus) -> None:
        """Set the result: its metric, or the exception."""
        cfg = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        self.result = JobReturn(self.overrides, cfg, self.config.hydra, str(self.folder))
        self.result.status, self.result.return_value = status, value


class Launcher:
    """What both launchers share; precedes one of submitit's in the method resolution order."""

    _EXECUTOR: str
    params: dict[str, Any]
    config: Any
    hydra_context: Any
    array_parallelism: int

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Wait until every run has ended; returns their results in order.

        Raises:
            SystemExit: Runs of a grid failed, each of which is logged; or the jobs could not be submitted; or Ctrl-C.
        """
        runs = self._runs(job_overrides, initial_job_idx)
        folder = self._sweep
        folder.mkdir(parents=True, exist_ok=True)
        self._collect_finished(runs)
        self._reattach([run for run in runs if run.result is None])
        unfinished = [run for run in runs if run.result is None]
        done, reattached = len(runs) - len(unfinished), sum(run.job is not None for run in unfinished)
        log.info("%s: %d runs, %d of them finished and %d already submitted.", folder, len(runs), done, reattached)
        try:
            self._wait(unfinished)
        except UserError as error:
            exit_with(error)
        except KeyboardInterrupt:
            jobs = self._detach([run.job for run in unfinished if run.job is not None and run.result is None])
            log.warning("Stopped; %s. The same command with hydra.sweep.dir=%s resumes the sweep.", jobs, folder)
            raise SystemExit(128 + signal.SIGINT) from None
        by_position = {position: run for run in runs for position in run.duplicates}
        results = [by_position[position].result for position in range(len(job_overrides))]
        self._sum_up(runs, folder)
        return results  # type: ignore[return-value]

    @property
    def _sweep(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir))

    def _runs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[LaunchedRun]:
        """One run for each folder: a sampler may choose the same overrides twice."""
        runs: dict[Path, LaunchedRun] = {}
        before = HydraConfig.instance().cfg
        for position, overrides in enumerate(job_overrides):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config.hydra.job):
                config.hydra.job.num, config.hydra.job.id = first + position, str(first + position)
            HydraConfig.instance().set_config(config)
            folder = Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()
            run = runs.setdefault(folder, LaunchedRun(list(overrides), first + position, config, folder))
            run.duplicates.append(position)
        HydraConfig.instance().cfg = before
        return list(runs.values())

    def _collect_finished(self, runs: list[LaunchedRun]) -> None:
        from robolearn.runs.run import is_finished, last_metric

        for run in runs:
            cfg = run.config
            steps = OmegaConf.select(cfg, "offline.steps"), OmegaConf.select(cfg, "online.steps")
            if None not in steps and is_finished(run.folder, sum(steps)):
                run.end(last_metric(run.folder, cfg.checkpoints.metric), JobStatus.COMPLETED)

    def _reattach(self, runs: list[LaunchedRun]) -> None:
        """Find jobs of an earlier launcher that are still queued; without a queue there are none."""

    def _wait(self, runs: list[LaunchedRun]) -> None:
        pending = [run for run in runs if run.job is None]
        submitted = [run for run in runs if run.job is not None]
        while pending or submitted:
            if count := self._free_slots(len(pending), len(submitted)):
                self._submit(pending[:count])
                submitted, pending = submitted + pending[:count], pending[count:]
            time.sleep(POLL_S)
            alive = self._alive()
            for run in submitted:
                self._poll(run, alive)
            for run in (run for run in submitted if run.result is not None):
                self._log_result(run)
            submitted = [run for run in submitted if run.result is None]

    def _poll(self, run: LaunchedRun, alive: Callable[[Any], bool]) -> None:
        if run.job.paths.result_pickle.exists():
            outcome, value = run.job.task(0)._get_outcome_and_result()
            if outcome == "success":
                run.result = value
            else:
                run.end(RuntimeError(str(value).strip().splitlines()[-1]), JobStatus.FAILED)
            return
        run.missing_polls = 0 if alive(run.job) else run.missing_polls + 1
        if run.missing_polls >= MISSING_POLLS:
            run.end(UserError(f"job {run.job.job_id} exited without an error message"), JobStatus.FAILED)

    def _submit(self, runs: list[LaunchedRun]) -> None:
        import submitit

        own = {"max_num_timeout"}
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        params = {key: value for key, value in self.params.items() if key != "submitit_folder"}
        if not params.get("gpus_per_node"):
            params.pop("gpus_per_node", None)  # a SLURM without GPUs rejects the option
        limits = {f"{self._EXECUTOR}_{key}": params.pop(key) for key in own & set(params)}
        limits[f"{self._EXECUTOR}_python"] = self._python()
        executor = submitit.AutoExecutor(self.params["submitit_folder"], cluster=self._EXECUTOR, **limits)
        named = {key if key in shared else f"{self._EXECUTOR}_{key}": value for key, value in params.items()}
        executor.update_parameters(**named)
        state = Singleton.get_state()
        calls = [(run.overrides, "hydra.sweep.dir", run.index, f"job_id_for_{run.index}", state) for run in runs]
        call: Any = self
        for run, job in zip(runs, executor.map_array(call, *zip(*calls, strict=True)), strict=True):
            run.job = job
            launch_failures.forget(self._sweep, run.folder)
            log.info("#%d as job %s: %s", run.index, job.job_id, run.folder.name)

    def _python(self) -> str:
        """The shell command that starts a job's Python."""
        return shlex.quote(sys.executable)

    def _detach(self, jobs: list[Any]) -> str:
        """Detach from jobs that have not ended; returns what happens to them, for a message."""
        raise NotImplementedError

    def _free_slots(self, pending: int, submitted: int) -> int:
        """How many jobs to submit now, given how many are pending and submitted."""
        raise NotImplementedError

    def _alive(self) -> Callable[[Any], bool]:
        raise NotImplementedError

    def _log_result(self, run: LaunchedRun) -> None:
        assert run.result
        if run.result.status == JobStatus.COMPLETED:
            log.info("#%d is finished: %s", run.index, run.folder.name)
            return
        error, stderr = run.result._return_value, run.job.paths.stderr
        error = first_line(error) if isinstance(error, UserError) else with_class(error)
        log.error("#%d failed: %s: %s; log: %s", run.index, run.folder.name, error, stderr)
        if not (run.folder / "status.json").exists():
            # The run did not start: imports failed, or the node lacks the environment.
            launch_failures.record(self._sweep, run.folder, run.overrides, error, stderr)

    def _sum_up(self, runs: list[LaunchedRun], folder: Path) -> None:
        if "BasicSweeper" not in str(self.config.hydra.sweeper._target_):
            return  # a sampler, which launches more
        if bad := [run for run in runs if run.result and run.result.status != JobStatus.COMPLETED]:
            log.error(
                "%d of %d runs did not finish; the same command with hydra.sweep.dir=%s resumes them, and "
                "robolearn-sweep %s shows all.",
                *(len(bad), len(runs), folder, folder),
            )
            raise SystemExit(1)
        log.info("All %d runs are finished; robolearn-sweep %s shows them.", len(runs), folder)


class SlurmLauncher(Launcher, submitit_launcher.SlurmLauncher):
    """Jobs of a sweep as one array."""

    def _submit(self, runs: list[LaunchedRun]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            super()._submit(runs)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM did not accept the sweep: {one_line(error)}.", key="hydra.launcher") from error

    def _free_slots(self, pending: int, submitted: int) -> int:
        if not submitted:
            return min(pending, slurm.max_array_size())
        # SLURM's limit holds for each array; the launcher's for all of its arrays together.
        return max(0, min(pending, self.params["array_parallelism"] - submitted))

    def _python(self) -> str:
        from submitit.slurm.slurm import SlurmJobEnvironment

        # Until submitit has loaded its handler, its signal would end the job for good. When it is ignored, SLURM ends a
        # job that is pre-empted this early after its grace time, and requeues it.
        return f"""sh -c 'trap "" {SlurmJobEnvironment.USR_SIG}; exec "$0" "$@"' {super()._python()}"""

    def _reattach(self, runs: list[LaunchedRun]) -> None:
        from submitit.slurm.slurm import SlurmJob

        there = slurm.queue() or {}
        pattern = Path(self.params["submitit_folder"])
        by_overrides = {tuple(run.overrides): run for run in runs}
        for job in self._queued_jobs(pattern, there, SlurmJob):
            overrides = job.submission().args[0]
            if run := by_overrides.get(tuple(overrides)):
                run.job = job

    def _queued_jobs(self, pattern: Path, there: dict[str, str], kind: Any) -> Iterator[Any]:
        tasks = range(int(self.params.get("nodes") or 1) * int(self.params.get("tasks_per_node") or 1))
        for folder in sorted(pattern.parent.glob("[0-9]*")):
            job = kind(pattern, folder.name, list(tasks)) if folder.name in there else None
            if job and job.paths.submitted_pickle.exists() and not job.paths.result_pickle.exists():
                yield job

    def _detach(self, jobs: list[Any]) -> str:
        arrays = dict.fromkeys(job.job_id.partition("_")[0] for job in jobs)
        return f"its jobs keep running, unless you scancel {' '.join(arrays)}" if jobs else "no jobs were queued"

    def _alive(self) -> Callable[[Any], bool]:
        there = slurm.queue()
        # Without an answer of the controller the jobs count as alive.
        return lambda job: there is None or job.job_id in there


class LocalLauncher(Launcher, submitit_launcher.LocalLauncher):
    """Jobs of a sweep as processes of this machine, `array_parallelism` at a time.

    Args:
        array_parallelism: How many at a time.
        params: Keys of submitit's local launcher.
    """

    def __init__(self, array_parallelism: int = 1, **params: Any) -> None:
        super().__init__(**params)
        self.array_parallelism = array_parallelism
        if self.params.get("gpus_per_node") is None:
            # Submitit hides every GPU that was not requested; a run without a launcher sees them all.
            self.params["gpus_per_node"] = len(list(Path("/dev").glob("nvidia[0-9]*")))

    def _free_slots(self, pending: int, submitted: int) -> int:
        return max(0, min(pending, self.array_parallelism - submitted))

    def _detach(self, jobs: list[Any]) -> str:
        for job in jobs:
            job.cancel()
        return "its runs were cancelled"

    def _alive(self) -> Callable[[Any], bool]:
        return lambda job: not job.done()
