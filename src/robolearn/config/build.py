"""From a composed configuration to objects: the parts of a run, and its trainer."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robolearn.agent import AgentFactory
from robolearn.checkpoints.load import PretrainedCheckpoint
from robolearn.checkpoints.locate import locate, policy_node
from robolearn.config.devices import pick_compile, pick_cuda_graph, pick_device, use_fast_kernels
from robolearn.config.schema import CONFIG_ONLY_KEYS
from robolearn.config.validate import check_targets, refuse
from robolearn.data.batch_stream import BatchTransform, TransformedStream
from robolearn.data.loader import Loader
from robolearn.data.offline_online_loader import OfflineOnlineLoader
from robolearn.data.protocols import FrameDataset
from robolearn.distributed.world import World
from robolearn.envs import check_same_spec
from robolearn.errors import UserError, one_line
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.rng import seed_all
from robolearn.rollouts.task_prompts import TaskEmbeddings, task_prompts
from robolearn.runs.logger import NullLogger
from robolearn.runs.run import Run
from robolearn.trainer import Trainer
from robolearn.training.intervals import Intervals
from robolearn.training.online import Collector, Online
from robolearn.training.optim import build_param_groups
from robolearn.training.phases import OfflinePhase, OnlinePhase, Phase
from robolearn.training.update import Update
from robolearn.types import Spec, Stats

DATASET_MEMBERS = ("load", "batch", "make_sampler", "normalization_stats", "has_rewards")
AMP = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def plain(cfg: DictConfig, **changed: Any) -> dict[str, Any]:
    """The configuration in plain containers."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return {**{str(key): value for key, value in content.items()}, **changed}


def build(key: str, cfg: DictConfig, *args: Any, **kwargs: Any) -> Any:
    """What the node of a key describes; the arguments are the code's share of a ``_partial_`` one.

    Raises:
        UserError: A value is not of the type or range that the constructor's annotation says, or refused by it.
    """
    node = cfg[key]
    if node is None:
        return None
    refuse(check_targets({key: OmegaConf.to_container(node, resolve=True)}))
    try:
        made = instantiate(node, _convert_="all")
        return made(*args, **kwargs) if args or kwargs else made
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, (UserError, ValueError)):
            raise _refused(key, cause) from error
        if cause is not None:
            raise cause from error
        raise UserError(f"{key}: {one_line(error)}.", key=key) from error
    except ValueError as error:
        raise _refused(key, error) from error


def _refused(key: str, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{key}: {one_line(error)}.", key=key)


def total_steps(cfg: DictConfig) -> int:
    """Updates of all phases."""
    return cfg.offline.steps + cfg.online.steps


def build_dataset(cfg: DictConfig) -> FrameDataset:
    """The dataset, with its description read.

    Raises:
        UserError: There is none, or it refuses its options.
    """
    dataset = build("dataset", cfg)
    if dataset is None:
        raise UserError("dataset: there is nothing to train on", key="dataset", fix="choose dataset=NAME")
    if missing := [name for name in DATASET_MEMBERS if not hasattr(dataset, name)]:
        raise UserError(
            f"dataset._target_={cfg.dataset._target_} lacks {missing[0]!r}",
            key="dataset._target_",
            fix="subclass robolearn.data.FrameDataset, which documents what a dataset offers",
        )
    return dataset


def build_policy(cfg: DictConfig, spec: Spec) -> Policy:
    """The policy of a configuration, for the features of a spec.

    Raises:
        UserError: Its options contradict each other or the spec.
    """
    node = {key: value for key, value in plain(cfg)["policy"].items() if key not in CONFIG_ONLY_KEYS["policy"]}
    policy = build("policy", OmegaConf.create({"policy": node}), spec=spec)
    if not isinstance(policy, Policy):
        raise UserError(
            f"policy._target_={cfg.policy._target_}: this is no robolearn.policies.base.Policy.", key="policy._target_"
        )
    return policy


def start_of(cfg: DictConfig) -> PretrainedCheckpoint | None:
    """The checkpoint that ``policy.path`` names.

    Raises:
        UserError: It is not there, damaged or not supported.
    """
    path = cfg.policy.get("path")
    return PretrainedCheckpoint(locate("policy.path", path)) if path else None


def load_policy(folder: Path, device: torch.device, cfg: DictConfig | None = None) -> tuple[Policy, Normalizer]:
    """The policy and normaliser of a checkpoint, as they act.

    Args:
        folder: What `robolearn.checkpoints.locate.locate` found.
        device: Where they go.
        cfg: A configuration with another node ``policy`` than the checkpoint's own.

    Raises:
        UserError: The weights do not fit the configuration, or statistics are missing.
    """
    start = PretrainedCheckpoint(folder)
    policy = build_policy(cfg or OmegaConf.create({"policy": policy_node(folder)}), start.spec())
    normalizer = Normalizer(start.spec(), policy.spec.normalization_mapping, transform=policy.spec.action_transform)
    start.load(policy)
    start.load_statistics(normalizer)
    return policy.to(device).eval(), normalizer.to(device)


def normalization_stats(dataset: FrameDataset, policy: Policy) -> tuple[Stats, list[Stats] | None]:
    """The statistics that actions are unnormalised with, and those of each dataset where each has its own.

    Args:
        dataset: Loaded.
        policy: May learn in other units than the dataset's.
    """
    transform = policy.spec.action_transform
    if transform is None:
        return dataset.normalization_stats(lambda one: one.stats)
    return dataset.normalization_stats(lambda one: transform.compute_stats(one, policy.spec.window, one.stats))


def initial_weights(cfg: DictConfig) -> Callable[[Policy, Normalizer], None]:
    """What fills the policy and the normalizer of a fresh run: the checkpoint of ``policy.path``, or the policy itself.

    Raises:
        UserError: The checkpoint is not there, damaged or not supported.
    """
    start = start_of(cfg)
    return start.init_weights if start else lambda policy, normalizer: policy.load_pretrained()


def build_phases(
    cfg: DictConfig,
    loader: Callable[[int, int], Loader],
    transforms: Sequence[BatchTransform],
    collector: Callable[[Online], Collector],
) -> list[Phase]:
    """The phases of a run: the offline phase, and the online phase where it has updates.

    Args:
        cfg: The run's configuration.
        loader: Makes a loader of demonstrations, given the batch size and a seed.
        transforms: What every batch of both phases passes through.
        collector: Makes the collector of the online phase.
    """
    demonstrations, n = loader(cfg.batch_size, cfg.seed), cfg.gradient_accumulation_steps
    phases: list[Phase] = [
        OfflinePhase(0, build("offline", cfg).steps, TransformedStream(demonstrations, transforms), n)
    ]
    if cfg.online.steps:
        online = build("online", cfg)
        collects = collector(online)
        n_replay = round(online.sampling_ratio * cfg.batch_size)
        mixed = OfflineOnlineLoader(
            offline=demonstrations,
            demonstrations=loader(cfg.batch_size - n_replay, cfg.seed + 1) if n_replay < cfg.batch_size else None,
            replay=collects.replay,
            n_replay=n_replay,
            window=demonstrations.window,
            device=demonstrations.device,
            first_batch=cfg.offline.steps * n,
            least_frames=online.buffer_seed_size,
            seed=cfg.seed,
            num_workers=cfg.num_workers,
        )
        stream = TransformedStream(mixed, transforms)
        phases.append(OnlinePhase(cfg.offline.steps, online.steps, stream, n, collector=collects))
    return phases


def build_trainer(cfg: DictConfig, run: Run, world: World | None = None) -> Trainer:
    """The trainer of a run, with its dataset loaded; nothing is trained yet.

    Args:
        cfg: The run's configuration.
        run: Its folder.
        world: The processes that train together.

    Raises:
        UserError: A part refuses its configuration or the dataset is not sound.
    """
    world = world or World()
    device = pick_device(cfg.device, world)
    use_fast_kernels(device)
    seed_all(cfg.seed)
    dataset = build_dataset(cfg)
    env = build("env", cfg)
    if env is not None:
        check_same_spec(dataset.spec, env.spec)
    # The weights are drawn on the CPU, so that a seed means the same on every device.
    policy = build_policy(cfg, dataset.spec).to(device)
    optimizer = build("optimizer", cfg, build_param_groups(policy.param_groups(), plain(cfg)["param_groups"]))
    frames = dataset.load(device)
    stats, each = normalization_stats(dataset, policy)
    mapping, transform = policy.spec.normalization_mapping, policy.spec.action_transform
    normalizer = Normalizer(dataset.spec, mapping, stats, each, transform).to(device)
    evaluator = build("eval", cfg, env=env) if env is not None else None
    update = Update(
        policy,
        normalizer,
        optimizer,
        build("scheduler", cfg, optimizer, num_training_steps=total_steps(cfg)),
        device,
        ema=build("ema", cfg, policy) if cfg.use_ema else None,
        grad_clip_norm=cfg.grad_clip_norm,
        amp_dtype=AMP[cfg.amp_dtype] if cfg.use_amp else None,
        compile=pick_compile(cfg.compile, device),
        cuda_graph=False if world.size > 1 else pick_cuda_graph(cfg, device, policy, optimizer),
        world=world,
    )
    prompts = task_prompts(policy, evaluator, dataset.spec.tasks) if evaluator else []
    make_agent = AgentFactory(normalizer, device, update.amp_dtype, prompts, update.cuda_graph)

    def loader(batch_size: int, seed: int) -> Loader:
        sampler = dataset.make_sampler(batch_size, seed, policy.spec.drop_n_last_frames)
        return Loader(frames, world.shard_sampler(sampler), policy.spec.window, device, cfg.num_workers)

    transforms: list[BatchTransform] = [build("image_transforms", cfg)] if cfg.image_transforms else []
    task_index = 0
    if policy.spec.uses_language:
        embeddings = TaskEmbeddings(policy, dataset.spec.tasks, device, prompts)
        transforms.append(embeddings)
        task_index = embeddings.tasks.index(prompts[0]) if prompts else 0

    def collector(online: Online) -> Collector:
        assert env is not None
        return online.collector(
            env, dataset.spec, run.folder, make_agent, update.eval_policy, cfg.offline.steps, task_index
        )

    return Trainer(
        update=update,
        phases=build_phases(cfg, loader, transforms, collector),
        intervals=Intervals(cfg.log_freq, cfg.eval_freq, cfg.save_freq, cfg.save_checkpoint),
        run=run,
        logger=build("logger", cfg, run.folder) if world.is_main_process else NullLogger(run.folder),
        checkpoints=build(
            "checkpoints", cfg, run.folder, OmegaConf.to_yaml(OmegaConf.create(dict(run.config))), dataset.spec
        ),
        init_weights=initial_weights(cfg),
        make_agent=make_agent,
        evaluator=evaluator,
        world=world,
    )
