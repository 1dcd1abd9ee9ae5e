"""Submitit's launchers, for runs that go on: what is done is not submitted again, and one dead job ends nothing else.

Hydra composes and submitit submits. Added here: the result of a run that is finished is read from its folder, a job
that an earlier launcher left in the queue is waited for instead of submitted twice, and a job that was killed is told
apart from one that is slow by asking the queue.
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
from robolearn.errors import UserError
from robolearn.sweeps import launch_failures
from robolearn.system import slurm

log = logging.getLogger(__name__)

POLL_S = 2.0
GONE_AFTER = 5
"""Looks at the queue without a job in it, nor a result on disk, after which it is taken for dead."""


@dataclass
class LocalConf(LocalQueueConf):
    """Keys of ``hydra/launcher=local``."""

    _target_: str = "hydra_plugins.robolearn.launchers.LocalLauncher"
    array_parallelism: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="robolearn_local", node=LocalConf(), provider="robolearn")


@dataclass
class Run:
    """A run of this launch, and what is known of it."""

    overrides: list[str]
    number: int
    config: DictConfig
    folder: Path
    job: Any = None
    absent: int = 0
    result: JobReturn | None = None
    twins: list[int] = field(default_factory=list)  # places in the launch that ask for the same run

    def ended(self, value: Any, status: JobStatus) -> None:
        """Note how it ended: its metric, or the exception."""
        cfg = OmegaConf.masked_copy(self.config, [str(key) for key in self.config if key != "hydra"])
        self.result = JobReturn(self.overrides, cfg, self.config.hydra, str(self.folder))
        self.result.status, self.result.return_value = status, value


class Launcher:
    """What both launchers share; stands before one of submitit's in the order of classes."""

    _EXECUTOR: str
    params: dict[str, Any]
    config: Any
    hydra_context: Any
    array_parallelism: int

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Bring every run to its end, and give their results in order.

        Raises:
            SystemExit: Runs did not end well and the sweep is a plain grid; they were told one by one. Or the jobs were
                not taken, or Ctrl-C.
        """
        runs = self._runs(job_overrides, initial_job_idx)
        folder = self._sweep
        folder.mkdir(parents=True, exist_ok=True)
        self._collect_finished(runs)
        self._adopt([run for run in runs if run.result is None])
        left = [run for run in runs if run.result is None]
        done, adopted = len(runs) - len(left), sum(run.job is not None for run in left)
        log.info("%s: %d runs, %d of them finished and %d at work before.", folder, len(runs), done, adopted)
        try:
            self._wait(left)
        except UserError as error:
            exit_with(error)
        except KeyboardInterrupt:
            jobs = self._leave([run.job for run in left if run.job is not None and run.result is None])
            log.warning("Stopped; %s. The same command with hydra.sweep.dir=%s goes on from there.", jobs, folder)
            raise SystemExit(128 + signal.SIGINT) from None
        by_place = {place: run for run in runs for place in run.twins}
        results = [by_place[place].result for place in range(len(job_overrides))]
        self._sum_up(runs, folder)
        return results  # type: ignore[return-value]

    @property
    def _sweep(self) -> Path:
        return Path(str(self.config.hydra.sweep.dir))

    def _runs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Run]:
        """One run for each folder: a sampler may ask for the same twice."""
        runs: dict[Path, Run] = {}
        before = HydraConfig.instance().cfg
        for place, overrides in enumerate(job_overrides):
            config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config.hydra.job):
                config.hydra.job.num, config.hydra.job.id = first + place, str(first + place)
            HydraConfig.instance().set_config(config)
            folder = Path(str(config.hydra.sweep.dir), str(config.hydra.sweep.subdir)).absolute()
            runs.setdefault(folder, Run(list(overrides), first + place, config, folder)).twins.append(place)
        HydraConfig.instance().cfg = before
        return list(runs.values())

    def _collect_finished(self, runs: list[Run]) -> None:
        from robolearn.runs.run import is_finished, last_metric

        for run in runs:
            cfg = run.config
            steps = OmegaConf.select(cfg, "offline.steps"), OmegaConf.select(cfg, "online.steps")
            if None not in steps and is_finished(run.folder, sum(steps)):
                run.ended(last_metric(run.folder, cfg.checkpoints.metric), JobStatus.COMPLETED)

    def _adopt(self, runs: list[Run]) -> None:
        """Take over jobs of an earlier launcher that are still queued; where there is no queue there are none."""

    def _wait(self, runs: list[Run]) -> None:
        waiting = [run for run in runs if run.job is None]
        at_work = [run for run in runs if run.job is not None]
        while waiting or at_work:
            number = self._room(len(waiting), len(at_work))
            if number:
                self._submit(waiting[:number])
                at_work, waiting = at_work + waiting[:number], waiting[number:]
            time.sleep(POLL_S)
            alive = self._alive()
            for run in at_work:
                self._look(run, alive)
            for run in (run for run in at_work if run.result is not None):
                self._tell(run)
            at_work = [run for run in at_work if run.result is None]

    def _look(self, run: Run, alive: Callable[[Any], bool]) -> None:
        if run.job.paths.result_pickle.exists():
            outcome, value = run.job.task(0)._get_outcome_and_result()
            if outcome == "success":
                run.result = value
            else:
                run.ended(RuntimeError(str(value).strip().splitlines()[-1]), JobStatus.FAILED)
            return
        run.absent = 0 if alive(run.job) else run.absent + 1
        if run.absent >= GONE_AFTER:
            run.ended(UserError(f"job {run.job.job_id} died without a word"), JobStatus.FAILED)

    def _submit(self, runs: list[Run]) -> None:
        import submitit

        own = {"max_num_timeout"}
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        params = {key: value for key, value in self.params.items() if key != "submitit_folder"}
        if not params.get("gpus_per_node"):
            params.pop("gpus_per_node", None)  # SLURM without GPUs knows no such request
        limits = {f"{self._EXECUTOR}_{key}": params.pop(key) for key in own & set(params)}
        limits[f"{self._EXECUTOR}_python"] = self._python()
        executor = submitit.AutoExecutor(self.params["submitit_folder"], cluster=self._EXECUTOR, **limits)
        named = {key if key in shared else f"{self._EXECUTOR}_{key}": value for key, value in params.items()}
        executor.update_parameters(**named)
        state = Singleton.get_state()
        calls = [(run.overrides, "hydra.sweep.dir", run.number, f"job_id_for_{run.number}", state) for run in runs]
        call: Any = self
        for run, job in zip(runs, executor.map_array(call, *zip(*calls, strict=True)), strict=True):
            run.job = job
            launch_failures.forget(self._sweep, run.folder)
            log.info("#%d as job %s: %s", run.number, job.job_id, run.folder.name)

    def _python(self) -> str:
        """The shell's words that start a job's Python."""
        return shlex.quote(sys.executable)

    def _leave(self, jobs: list[Any]) -> str:
        """Leave jobs that have not ended; what becomes of them, in words."""
        raise NotImplementedError

    def _room(self, waiting: int, at_work: int) -> int:
        """How many jobs to submit now."""
        raise NotImplementedError

    def _alive(self) -> Callable[[Any], bool]:
        raise NotImplementedError

    def _tell(self, run: Run) -> None:
        assert run.result
        if run.result.status == JobStatus.COMPLETED:
            log.info("#%d is finished: %s", run.number, run.folder.name)
            return
        error, told = _first_line(run.result._return_value), run.job.paths.stderr
        log.error("#%d failed: %s: %s; log: %s", run.number, run.folder.name, error, told)
        if not (run.folder / "status.json").exists():
            # It could not say so itself: imports failed, or the node lacks the environment.
            launch_failures.record(self._sweep, run.folder, run.overrides, error, told)

    def _sum_up(self, runs: list[Run], folder: Path) -> None:
        if "BasicSweeper" not in str(self.config.hydra.sweeper._target_):
            return  # a sampler, which goes on
        if bad := [run for run in runs if run.result and run.result.status != JobStatus.COMPLETED]:
            log.error(
                "%d of %d runs did not finish; the same command with hydra.sweep.dir=%s goes on with them, and "
                "robolearn-sweep %s shows all.",
                *(len(bad), len(runs), folder, folder),
            )
            raise SystemExit(1)
        log.info("All %d runs are finished; robolearn-sweep %s shows them.", len(runs), folder)


def _first_line(error: Any) -> str:
    """What ended a run, as its status says it."""
    lines = str(error).strip().splitlines() or [""]
    line = lines[0] if isinstance(error, UserError) else f"{type(error).__name__}: {lines[0]}"
    return line.rstrip(".")


class SlurmLauncher(Launcher, submitit_launcher.SlurmLauncher):
    """Jobs of a sweep as one array."""

    def _submit(self, runs: list[Run]) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        try:
            super()._submit(runs)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM did not take the sweep: {' '.join(str(error).split())}.") from error

    def _room(self, waiting: int, at_work: int) -> int:
        if not at_work:
            return min(waiting, slurm.max_array_size())
        # Each array has a limit of its own; what another one leaves of it is one's room.
        return max(0, min(waiting, self.params["array_parallelism"] - at_work))

    def _python(self) -> str:
        from submitit.slurm.slurm import SlurmJobEnvironment

        # Until submitit has loaded what to do its signal would end the job, for good. Ignored, it leaves a job that is
        # pre-empted this early to SLURM, which ends it when the time of grace is over and queues it again.
        return f"""sh -c 'trap "" {SlurmJobEnvironment.USR_SIG}; exec "$0" "$@"' {super()._python()}"""

    def _adopt(self, runs: list[Run]) -> None:
        from submitit.slurm.slurm import SlurmJob

        there = slurm.queue() or {}
        pattern = Path(self.params["submitit_folder"])
        by_overrides = {tuple(run.overrides): run for run in runs}
        for job in self._left(pattern, there, SlurmJob):
            overrides = job.submission().args[0]
            if run := by_overrides.get(tuple(overrides)):
                run.job = job

    def _left(self, pattern: Path, there: dict[str, str], kind: Any) -> Iterator[Any]:
        tasks = range(int(self.params.get("nodes") or 1) * int(self.params.get("tasks_per_node") or 1))
        for folder in sorted(pattern.parent.glob("[0-9]*")):
            job = kind(pattern, folder.name, list(tasks)) if folder.name in there else None
            if job and job.paths.submitted_pickle.exists() and not job.paths.result_pickle.exists():
                yield job

    def _leave(self, jobs: list[Any]) -> str:
        arrays = dict.fromkeys(job.job_id.partition("_")[0] for job in jobs)
        return f"its jobs go on, unless you scancel {' '.join(arrays)}" if jobs else "it had no jobs in the queue"

    def _alive(self) -> Callable[[Any], bool]:
        there = slurm.queue()
        # A controller that does not answer says nothing about its jobs.
        return lambda job: there is None or job.job_id in there


class LocalLauncher(Launcher, submitit_launcher.LocalLauncher):
    """Jobs of a sweep as processes of this machine, some at a time.

    Args:
        array_parallelism: How many at a time.
        params: Keys of submitit's local launcher.
    """

    def __init__(self, array_parallelism: int = 1, **params: Any) -> None:
        super().__init__(**params)
        self.array_parallelism = array_parallelism
        if self.params.get("gpus_per_node") is None:
            # Submitit hides every GPU that was not asked for; a plain run sees them all.
            self.params["gpus_per_node"] = len(list(Path("/dev").glob("nvidia[0-9]*")))

    def _room(self, waiting: int, at_work: int) -> int:
        return max(0, min(waiting, self.array_parallelism - at_work))

    def _leave(self, jobs: list[Any]) -> str:
        for job in jobs:
            job.cancel()
        return "its runs were told to end at once"

    def _alive(self) -> Callable[[Any], bool]:
        return lambda job: not job.done()
