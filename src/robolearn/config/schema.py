"""The configuration's root keys with their types and ranges; their values stand in the YAML files alone.

Nothing here imports torch, so that ``--cfg`` and ``--help`` answer at once.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Interval
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, ListConfig, OmegaConf

from robolearn.config.run_name import run_name
from robolearn.system.paths import conf_dir
from robolearn.types import Depth, NonNegative, Positive, PositiveFloat, Seed, Weight

CONFIG_GROUPS = {
    "policy": "what is learned, with its optimizer and scheduler presets",
    "env": "the simulator that evaluates, with its dataset",
    "dataset": "the demonstrations",
    "image_transforms": "random changes of training images",
    "optimizer": "how weights are updated",
    "scheduler": "how the learning rate changes",
    "offline": "updates on demonstrations",
    "online": "updates on data collected during training",
    "eval": "how a policy is evaluated",
    "logger": "where metrics go",
}
"""The groups of the root configuration, with a line for the help."""

RUNTIME_ARGS: dict[str, frozenset[str]] = {
    "policy": frozenset({"spec"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer", "num_training_steps"}),
    "ema": frozenset({"model"}),
    "checkpoints": frozenset({"folder", "config", "spec"}),
    "logger": frozenset({"folder"}),
    "logger.wandb": frozenset({"folder"}),
    "eval": frozenset({"env"}),
    "demonstrator": frozenset({"env"}),
}
"""Arguments of ``_partial_`` nodes that the code gives, not the configuration."""

CONFIG_ONLY_KEYS: dict[str, frozenset[str]] = {"policy": frozenset({"path"})}
"""Keys of nodes that the code reads and what is built does not get: where the first weights come from."""


AmpDtype = Annotated[str, Literal["bfloat16", "float16"]]  # OmegaConf knows no Literal, so it stands beside the type


@dataclass
class TrainConfig:
    """Root keys of ``train.yaml``, which has their values; the groups are checked against what they build."""

    seed: Seed = MISSING
    device: str | None = MISSING
    job_name: str = MISSING
    output_dir: str = MISSING
    resume: Annotated[str, Literal["auto", "must", "never"]] = MISSING
    batch_size: Annotated[int, Interval(ge=1, le=1_000_000)] = MISSING
    num_workers: Annotated[int, Interval(ge=0, le=1_000)] = MISSING
    grad_clip_norm: PositiveFloat | None = MISSING
    gradient_accumulation_steps: Positive = MISSING
    use_amp: bool = MISSING
    amp_dtype: AmpDtype = MISSING
    compile: bool | None = MISSING
    cuda_graph: bool | None = MISSING
    use_ema: bool = MISSING
    ema: dict[str, Any] = MISSING
    param_groups: dict[str, Any] = MISSING
    log_freq: NonNegative = MISSING
    eval_freq: NonNegative = MISSING
    save_freq: NonNegative = MISSING
    save_checkpoint: bool = MISSING
    checkpoints: dict[str, Any] = MISSING
    policy: Any = MISSING
    env: Any = MISSING
    dataset: Any = MISSING
    image_transforms: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    offline: Any = MISSING
    online: Any = MISSING
    eval: Any = MISSING
    logger: Any = MISSING


@dataclass
class EvaluateConfig:
    """Root keys of ``evaluate.yaml``, which has their values; those of the checkpoint's configuration go over them."""

    checkpoint: str = MISSING
    download: bool = MISSING
    tokenizer: str | None = MISSING
    output_dir: str = MISSING
    job_name: str = MISSING
    seed: Seed = MISSING
    device: str | None = MISSING
    use_amp: bool = MISSING
    amp_dtype: AmpDtype = MISSING
    compile: bool = MISSING
    cuda_graph: bool | None = MISSING
    env: Any = MISSING
    eval: Any = MISSING
    policy: Any = MISSING
    dataset: Any = MISSING


@dataclass
class CollectConfig:
    """Root keys of ``collect.yaml``, which has their values."""

    out: str = MISSING
    episodes: Positive = MISSING
    seed: Seed = MISSING
    workers: Depth | None = MISSING
    keep_failures: bool = MISSING
    patience: Positive = MISSING
    instruction: str | None = MISSING
    action_noise: Weight = MISSING
    action_label: Annotated[str, Literal["clean", "executed"]] = MISSING
    video: bool = MISSING
    video_codec: str = MISSING
    video_crf: Annotated[int, Interval(ge=0, le=63)] = MISSING
    policy: Any = MISSING
    device: str | None = MISSING
    env: Any = MISSING
    demonstrator: Any = MISSING
    dataset: Any = MISSING


def register() -> None:
    """Make the schemas and resolvers known to Hydra; doing so twice is harmless."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig, provider="robolearn")
    store.store(name="evaluate_schema", node=EvaluateConfig, provider="robolearn")
    store.store(name="collect_schema", node=CollectConfig, provider="robolearn")
    OmegaConf.register_new_resolver("robolearn.job_name", _job_name, replace=True)
    OmegaConf.register_new_resolver("robolearn.run_name", _run_name, replace=True)


def drop_shadowed_nodes() -> None:
    """Take nodes of Hydra's plugins out of its store where a documented file of the same name is in ``conf/``.

    Hydra refuses to have both. To be called once the plugins are loaded.
    """
    for file in sorted((conf_dir() / "hydra" / "sweeper").rglob("*.yaml")):
        node: Any = ConfigStore.instance().repo
        for part in file.parent.relative_to(conf_dir()).parts:
            node = node.get(part, {})
        node.pop(file.name, None)


def _run_name(overrides: ListConfig, hidden: ListConfig, sweep: str) -> str:
    # As they were given: what an interpolation stands for may change from one start to the next.
    return run_name(OmegaConf.to_container(overrides, resolve=False), hidden, sweep)  # type: ignore[arg-type]


def _job_name(env: str | None, policy: str | None) -> str:
    parts = [part.replace("/", "-") for part in (env, policy) if part and part != "none"]
    return "_".join(parts)


register()
