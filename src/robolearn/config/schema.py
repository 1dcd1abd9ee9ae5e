"""The configuration's root keys and their types.

Nothing here imports torch, so that ``--cfg`` and ``--help`` answer at once.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, ListConfig, OmegaConf

from robolearn.config.run_name import run_name
from robolearn.system.paths import conf_dir

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


@dataclass
class TrainConfig:
    """Root keys of ``train.yaml`` and their types; the groups are checked against what they build."""

    seed: int = 1000
    device: str | None = None
    job_name: str = MISSING
    output_dir: str = MISSING
    resume: str = "auto"
    batch_size: int = 8
    num_workers: int = 4
    grad_clip_norm: float | None = 10.0
    gradient_accumulation_steps: int = 1
    use_amp: bool = False
    amp_dtype: str = "bfloat16"
    compile: bool | None = None
    cuda_graph: bool | None = None
    use_ema: bool = False
    ema: Any = None
    param_groups: dict[str, Any] = field(default_factory=dict)
    log_freq: int = 200
    eval_freq: int = 20000
    save_freq: int = 20000
    save_checkpoint: bool = True
    checkpoints: Any = None
    policy: Any = None
    env: Any = None
    dataset: Any = None
    image_transforms: Any = None
    optimizer: Any = None
    scheduler: Any = None
    offline: Any = None
    online: Any = None
    eval: Any = None
    logger: Any = None


@dataclass
class EvaluateConfig:
    """Root keys of ``evaluate.yaml``; what the checkpoint's configuration gives comes on top."""

    checkpoint: str = MISSING
    download: bool = False
    tokenizer: str | None = None
    output_dir: str = MISSING
    job_name: str = MISSING
    seed: int = 1000
    device: str | None = None
    use_amp: bool = False
    amp_dtype: str = "bfloat16"
    compile: bool = False
    cuda_graph: bool | None = None
    env: Any = None
    eval: Any = None
    policy: Any = None
    dataset: Any = None


@dataclass
class CollectConfig:
    """Root keys of ``collect.yaml``."""

    out: str = MISSING
    episodes: int = 50
    seed: int = 0
    workers: int | None = None
    keep_failures: bool = False
    patience: int = 100
    instruction: str | None = None
    action_noise: float = 0.0
    action_label: str = "clean"
    video: bool = True
    video_codec: str = "libx264"
    video_crf: int = 18
    policy: Any = None
    device: str | None = None
    env: Any = None
    demonstrator: Any = None
    dataset: Any = None


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
