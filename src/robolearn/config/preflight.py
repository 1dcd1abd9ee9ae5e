"""See before anything is written that a run can be made of its configuration."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf

from robolearn.config.build import build, build_dataset, build_policy, plain, start_of, total_steps
from robolearn.config.compose import Job
from robolearn.config.devices import pick_device
from robolearn.config.memory_check import check_memory
from robolearn.config.schema import TrainConfig
from robolearn.config.validate import check_roots, check_targets, refuse
from robolearn.data.augment import ImageTransforms
from robolearn.data.protocols import FrameDataset
from robolearn.data.reflection import AntidiagonalReflection
from robolearn.distributed.world import World
from robolearn.envs import check_same_spec
from robolearn.errors import UserError, did_you_mean, one_line, one_of
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.rollouts.task_prompts import TaskEmbeddings, task_prompts
from robolearn.runs.run import Run, flatten
from robolearn.training.optim import build_param_groups

LONGEST_NAME = 200
"""Characters of a path that no file system refuses."""

LARGEST_RATE = 1e6
"""Of what an optimizer takes: learning rates, decays, momenta."""


def check(jobs: Sequence[Job], world: World | None = None) -> None:
    """Check every job of a run or a sweep: keys, types, the rules of every constructor, device and folder.

    Parts that jobs share are built once. Nothing is written, and nothing large is built.

    Args:
        jobs: What will run.
        world: The processes that run a job together, where none is submitted to a cluster.

    Raises:
        UserError: The first mistake; in a sweep with the overrides of the job that has it.
    """
    seen: dict[str, Any] = {}
    world = world or World()
    for number, job in enumerate(jobs):
        try:
            check_values(job, TrainConfig)
            processes = _processes(job, world)
            check_distributed(job.cfg, processes)
            if not job.is_remote:
                pick_device(job.cfg.device, world)
            _check_steps(job.cfg)
            policy = check_parts(job.cfg, seen)
            if not job.is_remote:
                _check_tasks(job.cfg, policy, seen)
                check_memory(job, policy, build_dataset(job.cfg).spec)
            if not world.is_main_process:
                continue  # the first process looks after the folder
            run = Run(job.folder, plain(job.cfg, output_dir=str(job.folder)), job.overrides)
            check_folder(run, job.cfg.resume)
            build("logger", job.cfg, job.folder)
            if not run.exists and not job.is_remote:
                _check_pretrained(job.cfg, policy)
        except OSError as error:
            raise _refused_path(job.cfg, error) from error
        except UserError as error:
            if len(jobs) == 1:
                raise
            own = [text for text in job.overrides if any(text not in other.overrides for other in jobs)]
            raise UserError(f"Job {number} of the sweep ({' '.join(own)}): {error}", key=error.key) from error


def _refused_path(cfg: DictConfig, error: OSError) -> UserError:
    """What the system says of a path, with the key that it comes from."""
    path = str(error.filename)
    keys = [key for key, value in flatten(plain(cfg)).items() if isinstance(value, str) and value and value in path]
    values = {key: str(OmegaConf.select(cfg, key)) for key in keys}
    # Of those that could be to blame the innermost: job_name rather than the output_dir that holds it.
    long = {key: value for key, value in values.items() if len(value) > LONGEST_NAME} or values
    key = min(long, key=lambda key: len(long[key])) if long else path[:80]
    return UserError(f"{key}: {path[:80]} can't be used: {error.strerror}", key=key, fix="give another path")


def _processes(job: Job, world: World) -> int:
    """How many train one model."""
    if not job.is_remote:
        return world.size
    return int(job.launcher.get("nodes") or 1) * int(job.launcher.get("tasks_per_node") or 1)


def check_distributed(cfg: DictConfig, processes: int) -> None:
    """Rules of training one model by several processes.

    Raises:
        UserError: One is broken.
    """
    if processes == 1:
        return
    if cfg.batch_size % processes:
        raise UserError(
            f"batch_size={cfg.batch_size} is what all {processes} processes of a run take together, so it must be a "
            f"multiple of {processes}.",
            key="batch_size",
        )
    if cfg.online.steps:
        raise UserError(
            f"online.steps={cfg.online.steps}: the online phase runs in one process, not in {processes}.",
            key="online.steps",
        )
    if cfg.cuda_graph:
        raise UserError(
            f"cuda_graph=true: updates of {processes} processes are not captured; set cuda_graph=null.",
            key="cuda_graph",
        )


def check_values(job: Job, schema: type) -> None:
    """Compare a job's root keys with their schema, and its nodes with the signatures of what they name.

    Raises:
        UserError: They differ; the message tells the first difference and the keys of the others.
    """

    def origin(key: str) -> str | None:
        return job.sources.origin(key, job.overrides)

    refuse([*check_roots(schema, job.cfg, origin), *check_targets(job.cfg, origin)])


def check_folder(run: Run, resume: str) -> None:
    """See that a run may start or resume in its folder, as ``resume`` says; nothing is written.

    Raises:
        UserError: The folder holds what it may not, or not what it must.
    """
    folder = run.folder
    if run.exists:
        if resume == "never":
            raise UserError(f"resume=never: {folder} holds a run already; give another output_dir.", key="resume")
        run.check_same()
        return
    if resume == "must":
        raise UserError(
            f"resume=must: {folder} holds no run to resume; give its output_dir, or resume=auto.", key="resume"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; give a folder.", key="output_dir")
    # What Hydra, submitit or a run killed before its first step may have left there.
    left = {"run.json", "git.diff"}
    names = [file.name for file in _entries(folder) if not file.name.startswith(".") and file.suffix != ".log"]
    foreign = [name for name in names if name not in left]
    if foreign:
        raise UserError(
            f"output_dir={folder} holds other files ({foreign[0]}) and no run; give a folder of its own.",
            key="output_dir",
        )


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def check_parts(cfg: DictConfig, seen: dict[str, Any]) -> Policy:
    """Build the parts that are light, and the policy without memory for its weights.

    Args:
        cfg: A job's configuration.
        seen: What was built before, by the sub-configuration; filled here.

    Returns:
        The policy.

    Raises:
        UserError: A constructor's rule is broken, or the parts do not fit each other.
    """

    def once(make: Callable[[], Any], *keys: str) -> Any:
        name = json.dumps([(key, plain(cfg)[key]) for key in keys], default=str)
        if name not in seen:
            seen[name] = make()
        return seen[name]

    dataset = once(partial(build_dataset, cfg), "dataset")
    simulator = once(partial(build, "env", cfg), "env")
    if simulator is not None:
        once(lambda: check_same_spec(dataset.spec, simulator.spec), "env", "dataset")
        once(lambda: build("eval", cfg, env=simulator), "env", "eval")
        once(lambda: _check_metric(cfg), "checkpoints", "env", "eval", "eval_freq")
    once(lambda: _check_transforms(cfg, dataset), "image_transforms", "dataset")
    policy = once(lambda: _check_policy(cfg, dataset), "policy", "dataset")
    _check_rewards(cfg, policy, dataset)
    once(lambda: build("online", cfg).check(policy, simulator, cfg.offline.steps), "online", "offline", "policy", "env")
    groups = list(policy.param_groups())
    once(lambda: _check_optimizer(cfg, groups), "policy", "optimizer", "scheduler", "param_groups", "offline")
    return policy


def _check_steps(cfg: DictConfig) -> None:
    if not total_steps(cfg):
        raise UserError(
            f"offline.steps={cfg.offline.steps}: there is nothing to train, since online.steps={cfg.online.steps} too",
            key="offline.steps",
            fix="give 1 or more",
        )


def _check_metric(cfg: DictConfig) -> None:
    """See that an evaluation has the metric which decides the best checkpoint; one of a user's own may not say."""
    names = getattr(hydra.utils.get_object(cfg.eval._target_), "metrics", None)
    if names and cfg.eval_freq and cfg.checkpoints:
        one_of("checkpoints.metric", cfg.checkpoints.metric, names)


def _check_transforms(cfg: DictConfig, dataset: FrameDataset) -> None:
    transforms = build("image_transforms", cfg)
    if isinstance(transforms, ImageTransforms | AntidiagonalReflection):
        transforms.check(dataset.spec)


def _check_policy(cfg: DictConfig, dataset: FrameDataset) -> Policy:
    try:
        with torch.device("meta"):
            policy = build_policy(cfg, dataset.spec)
    except (NotImplementedError, RuntimeError):  # its constructor computes with its weights
        policy = build_policy(cfg, dataset.spec)
    Normalizer(dataset.spec, policy.spec.normalization_mapping, dataset.stats)
    return policy


def _check_tasks(cfg: DictConfig, policy: Policy, seen: dict[str, Any]) -> None:
    """See that a policy which reads tasks can read the dataset's and the evaluation's."""
    if not policy.spec.uses_language:
        return
    name = json.dumps(["tasks", *(plain(cfg)[key] for key in ("policy", "dataset", "env", "eval"))], default=str)
    if name not in seen:
        tasks = build_dataset(cfg).spec.tasks
        TaskEmbeddings(policy, tasks, torch.device("cpu"))
        if (simulator := build("env", cfg)) is not None:
            policy.encode_tasks(task_prompts(policy, build("eval", cfg, env=simulator), tasks))
        seen[name] = True


def _check_rewards(cfg: DictConfig, policy: Policy, dataset: FrameDataset) -> None:
    if (policy.spec.needs_reward or policy.spec.window.reward) and not dataset.has_rewards:
        raise UserError(
            f"policy._target_={cfg.policy._target_} learns from rewards, but {dataset.name} has no next.reward",
            key="policy._target_",
            fix="choose another dataset, or collect one",
        )


def _check_pretrained(cfg: DictConfig, policy: Policy) -> None:
    """See that the weights a fresh run starts from are there and fit."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # torch warns that weights without memory take no values
        if start := start_of(cfg):
            start.check(policy)
        else:
            policy.load_pretrained()


def _check_optimizer(cfg: DictConfig, groups: list[str]) -> None:
    stand_in = {name: [torch.nn.Parameter(torch.zeros(1))] for name in groups}
    options = plain(cfg)["param_groups"]
    make = build("optimizer", cfg)
    _check_sizes("optimizer", make.keywords)
    try:
        optimizer = make(build_param_groups(stand_in, options))
    except (TypeError, ValueError) as error:
        raise _refused_option("optimizer", make, make.keywords, error) from None
    for name, own in options.items():  # torch looks at none of a group's options
        for option in own:
            if option not in optimizer.defaults:
                raise UserError(
                    f"param_groups.{name}.{option}: {type(optimizer).__name__} has no option "
                    f"'{option}'{did_you_mean(option, optimizer.defaults)}.",
                    key=f"param_groups.{name}.{option}",
                )
        _check_sizes(f"param_groups.{name}", own)
        try:
            make(stand_in[name], **own)
        except (TypeError, ValueError) as error:
            raise _refused_option(f"param_groups.{name}", make, own, error) from None
    build("scheduler", cfg, optimizer, num_training_steps=total_steps(cfg))


def _check_sizes(node: str, options: Mapping[str, Any]) -> None:
    """Refuse rates under which no run stays finite: torch annotates no range."""
    for option, value in options.items():
        if isinstance(value, (int, float)) and not -LARGEST_RATE <= value <= LARGEST_RATE:
            key = f"{node}.{option}"
            raise UserError(f"{key}={value} must be finite, and at most {LARGEST_RATE:g}.", key=key)


def _refused_option(node: str, make: Any, options: Mapping[str, Any], error: Exception) -> UserError:
    """What an optimizer says of its options, with the key of the one that it refuses when given alone."""
    key = node
    for option, value in options.items():
        try:
            make.func([torch.nn.Parameter(torch.zeros(1))], **{option: value})
        except (TypeError, ValueError):
            key = f"{node}.{option}"
            break
    given = f"{key}={options[option]}" if key != node else key
    return UserError(f"{given}: {one_line(error)}", key=key, fix="give another value")
