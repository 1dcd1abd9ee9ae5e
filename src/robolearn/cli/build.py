"""From a composed configuration to objects: check every part before anything is written, then build the trainer."""

import json
import logging
import os
import random
import shutil
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from robolearn.agent import Agent
from robolearn.cli.compose import Job
from robolearn.config import BESIDE, check_targets, hint
from robolearn.data.cache import default_folder
from robolearn.data.dataset import LeRobotDataset
from robolearn.data.loader import Loader
from robolearn.data.mixing import PhasedLoader
from robolearn.data.multi import MultiDataset
from robolearn.data.sampling import BatchSampler, WeightedSampler
from robolearn.data.transforms import ImageTransforms
from robolearn.envs import check_same_spec
from robolearn.errors import UserError
from robolearn.logger import Unheard
from robolearn.normalize import Normalizer
from robolearn.online import Collector
from robolearn.optim import is_capturable, merge_options
from robolearn.policies.base import Policy
from robolearn.pretrained import locate, policy_node
from robolearn.ranks import Ranks
from robolearn.run import Run
from robolearn.start import Start
from robolearn.tasks import TaskTable, told
from robolearn.trainer import Cadence, Trainer
from robolearn.types import Spec, Stats

log = logging.getLogger(__name__)

AMP = {"bfloat16": torch.bfloat16, "float16": torch.float16}
RESUME = ("auto", "never", "must")
AT_LEAST = {
    "batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_workers": 0,
    "log_freq": 0,
    "seed": 0,
    "offline.steps": 0,
    "online.steps": 0,
}


def check(jobs: Sequence[Job], ranks: Ranks | None = None) -> None:
    """Check every job of a run or a sweep: keys, types, the rules of every constructor, device and folder.

    Parts that jobs share are built once. Nothing is written, and nothing large is built.

    Args:
        jobs: What will run.
        ranks: The processes that run it together, where none is sent elsewhere.

    Raises:
        UserError: The first mistake; in a sweep with the overrides of the job that has it.
    """
    seen: dict[str, Any] = {}
    ranks = ranks or Ranks()
    for number, job in enumerate(jobs):
        try:
            check_targets_of(job)
            check_roots(job.cfg)
            processes = _processes(job, ranks)
            check_together(job.cfg, processes)
            if not job.elsewhere:
                pick_device(job.cfg.device, ranks)
            policy = check_parts(job.cfg, seen)
            if not job.elsewhere:
                _check_tasks(job.cfg, policy, seen)
            if not ranks.first:
                continue  # the first process looks after the folder
            run = Run(job.folder, plain(job.cfg, output_dir=str(job.folder)), job.overrides)
            check_folder(run, job.cfg.resume)
            build("logger", job.cfg, job.folder)
            if not run.exists and not job.elsewhere:
                _check_pretrained(job.cfg, policy)
        except UserError as error:
            if len(jobs) == 1:
                raise
            own = [text for text in job.overrides if any(text not in other.overrides for other in jobs)]
            raise UserError(f"Job {number} of the sweep ({' '.join(own)}): {error}") from error


def _processes(job: Job, ranks: Ranks) -> int:
    """How many train one model."""
    if not job.elsewhere:
        return ranks.size
    return int(job.launcher.get("nodes") or 1) * int(job.launcher.get("tasks_per_node") or 1)


def check_together(cfg: DictConfig, processes: int) -> None:
    """Rules of training one model by several processes.

    Raises:
        UserError: One is broken.
    """
    if processes == 1:
        return
    if cfg.batch_size % processes:
        raise UserError(
            f"batch_size={cfg.batch_size} is what all {processes} processes of a run take together, so it must be a "
            f"multiple of {processes}."
        )
    if cfg.online.steps:
        raise UserError(f"online.steps={cfg.online.steps}: the online phase runs in one process, not in {processes}.")
    if cfg.cuda_graph:
        raise UserError(f"cuda_graph=true: updates of {processes} processes are not captured; set cuda_graph=null.")


def check_targets_of(job: Job) -> None:
    """Compare a job's nodes with the signatures of what they name.

    Raises:
        UserError: They differ; the message tells the first difference and the keys of the others.
    """
    messages = check_targets(job.cfg, lambda key: job.sources.origin(key, job.overrides))
    if messages:
        raise UserError(_sentence(messages))


def check_one_of(key: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        UserError: It is none of them.
    """
    if value not in choices:
        raise UserError(f"{key}={value} is none of {', '.join(choices)}{hint(value, choices)}.")


def _sentence(messages: list[str]) -> str:
    rest = f" (and {len(messages) - 1} more: {'; '.join(m.partition(': ')[0] for m in messages[1:])})"
    return messages[0] if len(messages) == 1 else messages[0].rstrip(".") + rest + "."


def check_roots(cfg: DictConfig) -> None:
    """Rules of the root keys.

    Raises:
        UserError: One is broken.
    """
    for key, least in AT_LEAST.items():
        value = OmegaConf.select(cfg, key)
        if value < least:
            raise UserError(f"{key}={value}: it must be at least {least}.")
    if cfg.grad_clip_norm is not None and cfg.grad_clip_norm <= 0:
        raise UserError(f"grad_clip_norm={cfg.grad_clip_norm}: it must be positive, or null to clip nothing.")
    check_one_of("amp_dtype", cfg.amp_dtype, AMP)
    check_one_of("resume", cfg.resume, RESUME)


def pick_device(name: str | None, ranks: Ranks | None = None) -> torch.device:
    """The device of a name, or the fastest one there is; processes that train together take a GPU each.

    Raises:
        UserError: No such device is here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if ranks and ranks.size > 1 and cuda and name in (None, "cuda"):
        # SLURM may show a process its own GPU alone.
        return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    if name is None:
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "mps", "cpu") or (index and not index.isdigit()):
        raise UserError(f"device={name}: it is none of cuda, cuda:N, mps, cpu{hint(kind, ['cuda', 'mps', 'cpu'])}.")
    if kind == "cuda" and not cuda:
        raise UserError(f"device={name}: no GPU is visible here; use device=cpu.")
    if kind == "mps" and not mps:
        raise UserError(f"device={name}: this machine has no Apple GPU; use device=cpu.")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(f"device={name}: only {torch.cuda.device_count()} GPUs are visible, counted from cuda:0.")
    return torch.device(name)


def pick_compile(wanted: bool | None, device: torch.device) -> bool:
    """Whether losses are compiled.

    Raises:
        UserError: They shall be, and there is no C compiler, which compiled kernels need.
    """
    if wanted is None and device.type != "cuda":
        return False
    if wanted is False:
        return False
    if any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        # The default folder lies in /tmp, which does not outlive a job or a reboot.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(default_folder() / "compiled"))
        return True
    reason = "no C compiler is here; install gcc, or set compile=false"
    if wanted:
        raise UserError(f"compile=true: {reason}.")
    log.warning("The loss is not compiled and slower: %s.", reason)
    return False


def pick_cuda_graph(cfg: DictConfig, device: torch.device, policy: Policy, optimizer: Optimizer) -> bool | None:
    """Whether updates are captured: True where the user says so, None where they are if it works.

    Raises:
        UserError: They shall be, and cannot.
    """
    if cfg.cuda_graph is False:
        return False
    reasons = {
        f"device={device} is no CUDA GPU": device.type != "cuda",
        "amp_dtype=float16 looks at every gradient; use bfloat16": cfg.use_amp and cfg.amp_dtype == "float16",
        f"{type(optimizer).__name__} keeps its step on the host; use adamw": not is_capturable(optimizer),
        f"{type(policy).__name__} says that it cannot be captured": not policy.capturable,
    }
    reason = next((text for text, holds in reasons.items() if holds), None)
    if reason and cfg.cuda_graph:
        raise UserError(f"cuda_graph=true: {reason}, or set cuda_graph=false.")
    if reason and device.type == "cuda":
        log.warning("Updates run without a CUDA graph, and slower: %s.", reason)
    return False if reason else cfg.cuda_graph


def pick_acting_graph(wanted: bool | None, device: torch.device, policy: Policy) -> bool | None:
    """Whether predictions are captured: True where the user says so, None where they are if it works.

    Raises:
        UserError: They shall be, and cannot.
    """
    reasons = {
        f"device={device} is no CUDA GPU": device.type != "cuda",
        f"{type(policy).__name__} says that it cannot be captured": not policy.capturable,
    }
    reason = next((text for text, holds in reasons.items() if holds), None)
    if reason and wanted:
        raise UserError(f"cuda_graph=true: {reason}, or set cuda_graph=false.")
    return wanted


def use_fast_kernels(device: torch.device) -> None:
    """Trade bitwise repeatability on a GPU for speed: TF32 matrix products, and convolutions chosen by trying."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # where graphs are captured


def check_folder(run: Run, resume: str) -> None:
    """See that a run may start or go on in its folder, as ``resume`` says; nothing is written.

    Raises:
        UserError: The folder holds what it may not, or not what it must.
    """
    folder = run.folder
    if run.exists:
        if resume == "never":
            raise UserError(f"resume=never: {folder} holds a run already; give another output_dir.")
        run.check_same()
        return
    if resume == "must":
        raise UserError(f"resume=must: {folder} holds no run to go on with; give its output_dir, or resume=auto.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; give a folder.")
    # What Hydra, submitit or a run killed before its first step may have left there.
    left = {"run.json", "git.diff"}
    names = [file.name for file in _entries(folder) if not file.name.startswith(".") and file.suffix != ".log"]
    foreign = [name for name in names if name not in left]
    if foreign:
        raise UserError(f"output_dir={folder} holds other files ({foreign[0]}) and no run; give a folder of its own.")


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def plain(cfg: DictConfig, **changed: Any) -> dict[str, Any]:
    """The configuration in plain containers."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {**{str(key): value for key, value in content.items()}, **changed}


def build(key: str, cfg: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """What the node of a key describes; the arguments are the code's share of a ``_partial_`` one.

    Raises:
        UserError: The constructor refused a value.
    """
    node = cfg[key]
    if node is None:
        return None
    try:
        made = instantiate(node, _convert_="all")
        return made(*args, **kwargs) if args or kwargs else made
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (UserError, ValueError)):
            raise _refused(key, cause) from error
        if cause is not None:
            raise cause from error
        raise UserError(f"{key}: {' '.join(str(error).split())}") from error
    except ValueError as error:
        raise _refused(key, error) from error


def _refused(key: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{key}: {' '.join(str(error).split()).rstrip('.')}.")


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

    dataset = once(partial(build, "dataset", cfg), "dataset")
    if dataset is None:
        raise UserError("dataset: there is nothing to train on; choose dataset=NAME.")
    simulator = once(partial(build, "env", cfg), "env")
    if simulator is not None:
        once(lambda: check_same_spec(dataset.spec, simulator.spec), "env", "dataset")
        once(lambda: build("eval", cfg, env=simulator), "env", "eval")
    once(lambda: _check_transforms(cfg, dataset), "image_transforms", "dataset")
    policy = once(lambda: _check_policy(cfg, dataset), "policy", "dataset")
    _check_rewards(cfg, policy, dataset)
    once(lambda: build("online", cfg).check(policy, simulator, cfg.offline.steps), "online", "offline", "policy", "env")
    groups = list(policy.param_groups())
    once(lambda: _check_optimizer(cfg, groups), "policy", "optimizer", "scheduler", "param_groups", "offline")
    return policy


def _check_transforms(cfg: DictConfig, dataset: Any) -> None:
    transforms = build("image_transforms", cfg)
    if isinstance(transforms, ImageTransforms):
        transforms.check(dataset.spec)


def _check_policy(cfg: DictConfig, dataset: Any) -> Policy:
    try:
        with torch.device("meta"):
            policy = build_policy(cfg, dataset.spec)
    except (NotImplementedError, RuntimeError):  # its constructor computes with its weights
        policy = build_policy(cfg, dataset.spec)
    Normalizer(dataset.spec, policy.normalization_mapping, dataset.stats)
    if policy.window.reward and isinstance(dataset, LeRobotDataset | MultiDataset) and not dataset.has_rewards:
        raise UserError(
            f"policy: {type(policy).__name__} learns from rewards, but the dataset has no next.reward; "
            "choose another one."
        )
    return policy


def _check_tasks(cfg: DictConfig, policy: Policy, seen: dict[str, Any]) -> None:
    """See that a policy which reads tasks can read the dataset's and the evaluation's."""
    if not policy.reads_tasks:
        return
    name = json.dumps(["tasks", *(plain(cfg)[key] for key in ("policy", "dataset", "env", "eval"))], default=str)
    if name not in seen:
        tasks = build("dataset", cfg).spec.tasks
        TaskTable(policy, tasks, torch.device("cpu"))
        if (simulator := build("env", cfg)) is not None:
            policy.encode_tasks(told(policy, build("eval", cfg, env=simulator), tasks))
        seen[name] = True


def _check_rewards(cfg: DictConfig, policy: Policy, dataset: Any) -> None:
    """A policy that learns from rewards needs a dataset that has them."""
    columns = getattr(dataset, "meta", None) and dataset.meta.columns
    if policy.needs_reward and columns is not None and "next.reward" not in columns:
        raise UserError(
            f"policy._target_={cfg.policy._target_} learns from rewards, but {dataset.name} has no next.reward; "
            "choose another dataset, or collect one."
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
    optimizer = build("optimizer", cfg, merge_options(stand_in, plain(cfg)["param_groups"]))
    build("scheduler", cfg, optimizer, num_training_steps=total_steps(cfg))


def total_steps(cfg: DictConfig) -> int:
    """Updates of all phases."""
    return cfg.offline.steps + cfg.online.steps


def build_policy(cfg: DictConfig, spec: Spec) -> Policy:
    """A policy for what is observed and commanded.

    Raises:
        UserError: Its options contradict each other or the spec.
    """
    node = {key: value for key, value in plain(cfg)["policy"].items() if key not in BESIDE["policy"]}
    policy = build("policy", OmegaConf.create({"policy": node}), spec=spec)
    if not isinstance(policy, Policy):
        raise UserError(f"policy._target_={cfg.policy._target_}: this is no robolearn.policies.base.Policy.")
    return policy


def start_of(cfg: DictConfig) -> Start | None:
    """The checkpoint that ``policy.path`` names.

    Raises:
        UserError: It is not there, damaged or not supported.
    """
    path = cfg.policy.get("path")
    return Start(locate("policy.path", path)) if path else None


def load_policy(folder: Path, device: torch.device, cfg: DictConfig | None = None) -> tuple[Policy, Normalizer]:
    """The policy and normaliser of a checkpoint, as they act.

    Args:
        folder: What `robolearn.pretrained.locate` found.
        device: Where they go.
        cfg: A configuration with another node ``policy`` than the checkpoint's own.

    Raises:
        UserError: The weights do not fit the configuration, or statistics are missing.
    """
    start = Start(folder)
    policy = build_policy(cfg or OmegaConf.create({"policy": policy_node(folder)}), start.spec())
    normalizer = Normalizer(start.spec(), policy.normalization_mapping, space=policy.space)
    start.load(policy)
    start.load_statistics(normalizer)
    return policy.to(device).eval(), normalizer.to(device)


def seed_everything(seed: int) -> None:
    """Seed every source of randomness of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party code draws from it)
    torch.manual_seed(seed)


def make_sampler(dataset: Any, drop_n_last_frames: int, batch_size: int, seed: int) -> BatchSampler:
    """Which frames each batch holds."""
    if isinstance(dataset, MultiDataset) and dataset.weights is not None:
        return WeightedSampler(dataset.valid_parts(drop_n_last_frames), dataset.weights, batch_size, seed)
    return BatchSampler(dataset.valid_indices(drop_n_last_frames), batch_size, seed)


def statistics_of(dataset: Any, policy: Policy) -> tuple[Stats, list[Stats] | None]:
    """The statistics that actions are scaled by, and those of each dataset where each has its own.

    Args:
        dataset: Loaded.
        policy: May learn in other units than the dataset's.
    """
    each = dataset.each_stats if isinstance(dataset, MultiDataset) else None
    if policy.space is None:
        return dataset.stats, each
    if each is None:
        return policy.space.statistics(dataset, policy.window, dataset.stats), None
    each = [policy.space.statistics(one, policy.window, one.stats) for one in dataset.datasets]
    return each[dataset.acts_with], each


def mix_in(
    collector: Collector, offline: Loader, loader: Callable[[int, int], Loader], cfg: DictConfig
) -> PhasedLoader:
    """The batches of both phases: `offline`, then the demonstrations' share by `loader` and the rest collected."""
    n_replay = round(cfg.online.sampling_ratio * cfg.batch_size)
    return PhasedLoader(
        offline=offline,
        demonstrations=loader(cfg.batch_size - n_replay, cfg.seed + 1) if n_replay < cfg.batch_size else None,
        replay=collector.replay,
        n_replay=n_replay,
        window=offline.window,
        device=offline.device,
        switch=cfg.offline.steps * cfg.gradient_accumulation_steps,
        least_frames=cfg.online.buffer_seed_size,
        seed=cfg.seed,
    )


def build_trainer(cfg: DictConfig, run: Run, ranks: Ranks | None = None) -> Trainer:
    """The trainer of a run, with its dataset loaded; nothing is trained yet.

    Args:
        cfg: The run's configuration.
        run: Its folder.
        ranks: The processes that train together.

    Raises:
        UserError: A part refuses its configuration or the dataset is not sound.
    """
    ranks = ranks or Ranks()
    device = pick_device(cfg.device, ranks)
    use_fast_kernels(device)
    seed_everything(cfg.seed)
    dataset = build("dataset", cfg)
    simulator = build("env", cfg)
    if simulator is not None:
        check_same_spec(dataset.spec, simulator.spec)
    # The weights are drawn on the CPU, so that a seed means the same on every device.
    policy = build_policy(cfg, dataset.spec).to(device)
    optimizer = build("optimizer", cfg, merge_options(policy.param_groups(), plain(cfg)["param_groups"]))
    steps = total_steps(cfg)
    frames = dataset.load(device)
    stats, each = statistics_of(dataset, policy)
    normalizer = Normalizer(dataset.spec, policy.normalization_mapping, stats, each, policy.space).to(device)
    evaluator = build("eval", cfg, env=simulator) if simulator is not None else None
    words = told(policy, evaluator, dataset.spec.tasks) if evaluator else []
    amp_dtype = AMP[cfg.amp_dtype] if cfg.use_amp else None

    def loader(batch_size: int, seed: int) -> Loader:
        sampler = make_sampler(dataset, policy.drop_n_last_frames, batch_size, seed)
        return Loader(frames, ranks.own(sampler), policy.window, device, cfg.num_workers)

    batches, collector = loader(cfg.batch_size, cfg.seed), None
    if cfg.online.steps:
        acting = Agent(policy, normalizer, device, amp_dtype, words)
        collector = build("online", cfg).collector(
            simulator, policy, dataset.spec, run.folder, acting, cfg.offline.steps
        )
        batches = mix_in(collector, batches, loader, cfg)
    return Trainer(
        policy=policy,
        normalizer=normalizer,
        optimizer=optimizer,
        schedule=build("scheduler", cfg, optimizer, num_training_steps=steps),
        loader=batches,
        device=device,
        steps=steps,
        cadence=Cadence(cfg.log_freq, cfg.eval_freq, cfg.save_freq, cfg.save_checkpoint),
        run=run,
        logger=build("logger", cfg, run.folder) if ranks.first else Unheard(run.folder),
        checkpoints=build(
            "checkpoints", cfg, run.folder, OmegaConf.to_yaml(OmegaConf.create(dict(run.config))), dataset.spec
        ),
        evaluator=evaluator,
        ema=build("ema", cfg, policy) if cfg.use_ema else None,
        start=start_of(cfg),
        tasks=TaskTable(policy, dataset.spec.tasks, device) if policy.reads_tasks else None,
        told=words,
        image_transforms=build("image_transforms", cfg),
        grad_clip_norm=cfg.grad_clip_norm,
        gradient_accumulation_steps=cfg.gradient_accumulation_steps,
        compile=pick_compile(cfg.compile, device),
        cuda_graph=False if ranks.size > 1 else pick_cuda_graph(cfg, device, policy, optimizer),
        amp_dtype=amp_dtype,
        collector=collector,
        ranks=ranks,
    )
