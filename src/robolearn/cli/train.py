"""``robolearn-train``: compose, check, build, run."""

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from robolearn.cli.entry import entry_point, exit_with
from robolearn.config.compose import CommandLine, Job, compose, parse, run, with_run_names
from robolearn.config.pretrained_group import register_from_command_line
from robolearn.config.run_name import canonical
from robolearn.errors import UserError

if TYPE_CHECKING:
    from robolearn.distributed.world import World
    from robolearn.runs.run import Run

log = logging.getLogger(__name__)


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """The entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    line = parse(arguments, "train")
    if line.args.help:
        from robolearn.cli import help as texts

        print(texts.train(line.args.config_dir), end="")
        return
    if not (line.args.shell_completion or line.args.hydra_help):
        line = register_from_command_line(line)
    composes = line.args.cfg or line.args.info or not line.shows_only
    line = with_run_names(line)
    jobs = compose(line, "train") if composes else []
    if not line.shows_only:
        from robolearn.config.preflight import check  # imports torch, which questions need not wait for
        from robolearn.distributed.world import World

        world = World.from_env()
        check_processes(line, world.size)
        check(jobs, world)
        check_sweep(jobs[0])
    run(line, jobs, "train", run_job)


def check_processes(line: CommandLine, processes: int) -> None:
    """See that processes which torchrun or srun started will train one run in one folder.

    Raises:
        UserError: They would not.
    """
    if processes == 1:
        return
    if line.args.multirun:
        raise UserError(
            f"--multirun: {processes} processes were started to train one run; start the sweep by one process, with "
            "hydra/launcher=slurm_multinode.",
            key="--multirun",
        )
    if not _names_folder(line.overrides):
        raise UserError(
            f"output_dir: {processes} processes train one run, so name its folder: output_dir=FOLDER.", key="output_dir"
        )


def check_sweep(job: Job) -> None:
    """See that the cluster would take a sweep's jobs, where they go to one, and that a sampler has what it needs.

    Raises:
        UserError: It would not, or has not.
    """
    if "Optuna" in job.sweeper:
        if not find_spec("hydra_plugins.hydra_optuna_sweeper"):
            raise UserError(
                'hydra/sweeper=optuna: Optuna is not installed; pip install -e ".[optuna]".', key="hydra/sweeper"
            )
        if job.cfg.env is None or job.cfg.eval_freq <= 0:
            raise UserError(
                f"hydra/sweeper=optuna compares runs by {job.cfg.checkpoints.metric}, and nothing is evaluated here; "
                "choose a simulator with env=NAME, and an eval_freq of 1 or more.",
                key="hydra/sweeper",
            )
    if "Slurm" in str(job.launcher.get("_target_")):
        from robolearn.system.slurm import check_request

        check_request(job.launcher)


def run_job(cfg: DictConfig) -> float | None:
    """One run; returns its metric for sweepers.

    A mistake ends a single run with one sentence; in a sweep it is raised, so that the other jobs continue.
    """
    try:
        return _train(cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        exit_with(error)


def _train(cfg: DictConfig) -> float | None:
    from robolearn.distributed.world import PeerError, World

    world = World.from_env()
    if not world.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    try:
        return _train_together(cfg, world)
    except PeerError as error:
        # The process that failed has reported its error, and the first one that of the run.
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        print(f"Process {world.rank}: {error}", file=sys.stderr)
        raise SystemExit(1) from error


def _train_together(cfg: DictConfig, world: "World") -> float | None:
    from robolearn.config.build import build_trainer, plain, total_steps
    from robolearn.config.devices import describe_device, pick_device
    from robolearn.runs.run import Run

    context = HydraConfig.get()
    folder = Path(context.runtime.output_dir)
    overrides: Any = OmegaConf.to_container(context.overrides.task, resolve=False)
    run = Run(folder, plain(cfg, output_dir=str(folder)), overrides, writes=world.is_main_process)
    run.steps, run.hyperparameters = total_steps(cfg), hyperparameters(context, run.config)
    run.device = describe_device(pick_device(cfg.device, world))
    with world.process_group():
        if found := world.run_on_main(partial(_ended, cfg, run, context)):
            return found["metric"]
        with run.running(), world.propagate_errors():
            return build_trainer(cfg, run, world).train()


def _ended(cfg: DictConfig, run: "Run", context: Any) -> dict[str, float | None] | None:
    """The metric of a run that came to its end before; None where it is to run, which is then on record."""
    from robolearn.config.preflight import check_folder
    from robolearn.runs.run import is_finished, last_metric, newest_unfinished, status

    check_folder(run, cfg.resume)
    folder, typed = run.folder, [*context.overrides.task, *context.overrides.hydra]
    if not run.exists:
        if context.mode == RunMode.RUN and folder == Path(cfg.output_dir).absolute() and not _names_folder(typed):
            other = newest_unfinished(folder.parents[1], run.config)
            if other:
                log.info("A run of the same configuration was not finished: output_dir=%s resumes it.", other)
        run.record()
        return None
    if not is_finished(folder, run.steps or 0):
        return None
    metric, found = last_metric(folder, cfg.checkpoints.metric), status(folder) or {}
    log.info("%s is finished at step %d; %s was %s.", folder, found["step"], cfg.checkpoints.metric, metric)
    return {"metric": metric}


def hyperparameters(context: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, in a sweep only what its runs do not share: TensorBoard shows five columns of all there are."""
    from robolearn.runs.run import flatten

    shared = set(context.job.config.override_dirname.exclude_keys)
    given = canonical(OmegaConf.to_container(context.overrides.task, resolve=False))  # type: ignore[arg-type]
    leaves = flatten(config)
    usual = ("seed", "batch_size", "optimizer.lr")
    return {key: leaves.get(key, text) for key, text in given.items() if key not in shared} or {
        key: leaves[key] for key in usual if key in leaves
    }


def _names_folder(overrides: Sequence[str]) -> bool:
    """Whether the user named the run's folder."""
    return any(text.lstrip("+").startswith(("output_dir=", "hydra.run.dir=")) for text in overrides)


if __name__ == "__main__":
    main()
