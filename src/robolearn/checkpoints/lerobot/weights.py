"""LeRobot's state dicts and statistics in this project's terms and back."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from safetensors.torch import load_file
from torch import Tensor

from robolearn.checkpoints.lerobot.config_json import policy_options
from robolearn.checkpoints.lerobot.parameter_names import rename, rename_back, statistic_names
from robolearn.checkpoints.lerobot.registry import get_interop, policy_class
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.types import Feature, Kind, Spec

if TYPE_CHECKING:
    from robolearn.policies.base import Policy

EMPTY_CAMERA = re.compile(r"observation\.images\.empty_camera_\d+")


def build(config: Mapping[str, Any], fps: float = 1.0) -> tuple["Policy", Normalizer]:
    """A policy and its normaliser that compute what LeRobot's do, still without their weights.

    Args:
        config: The content of a LeRobot config.json.
        fps: Frames a second of the robot, which config.json does not say.

    Raises:
        UserError: The type is not supported here.
    """
    kind = config["type"]
    options = {**policy_options(config), **get_interop(kind).reference}
    spec = spec_of(config, fps)
    policy = policy_class(kind)(spec, **options)
    return policy, Normalizer(spec, policy.spec.normalization_mapping, transform=policy.spec.action_transform)


def spec_of(config: Mapping[str, Any], fps: float = 1.0) -> Spec:
    """The features in a LeRobot config.json that its policy observes, without cameras that the robot lacks.

    Raises:
        UserError: One is of a kind that no policy here knows.
    """
    observation = {}
    for key, feature in config["input_features"].items():
        if feature["type"] not in get_args(Kind):
            raise UserError(
                f"config.json: {key} is of the type {feature['type']}, which no policy here observes.",
                key=f"input_features.{key}",
            )
        # Of several vectors of the robot LeRobot takes the one of this name.
        other = feature["type"] == "STATE" and key != "observation.state"
        if not other and not EMPTY_CAMERA.fullmatch(key):
            observation[key] = Feature(feature["type"], tuple(feature["shape"]))
    return Spec(observation, Feature("ACTION", tuple(config["output_features"]["action"]["shape"])), fps)


def to_robolearn(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LeRobot state dict without its constants under our names, which begin with ``policy.`` or ``normalizer.``."""
    to_ours = rename(kind)
    renamed = {name: ours for name in state if (ours := to_ours(name))}
    return {".".join(ours): state[name] for name, ours in renamed.items()}


def load_processor_stats(files: Iterable[Path]) -> dict[str, Tensor]:
    """The statistics of LeRobot's processor files under our names; later files win."""
    found = {}
    for file in files:
        for name, value in load_file(file).items():
            key, _, statistic = name.rpartition(".")
            found[f"normalizer.stats.{key.replace('.', '_')}.{statistic}"] = value
    return found


def to_lerobot(kind: str, policy: "Policy", normalizer: Normalizer, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """A LeRobot state dict of a policy and its normaliser, the statistics and constants included.

    Args:
        kind: LeRobot's type of the policy.
        policy: Of the class of this kind.
        normalizer: Its normaliser.
        options: The node ``policy``.
    """
    to_theirs = rename_back(kind, options)
    state = {}
    for name, value in normalizer.state_dict().items():
        state |= dict.fromkeys(statistic_names(name), value)
    state |= {to_theirs(name): value for name, value in policy.state_dict().items()}
    for name, value in policy.named_buffers():
        if name.endswith(".pool.grid"):  # of a spatial softmax; computed here, not stored
            state[to_theirs(name).replace(".grid", ".pos_grid")] = value
    state |= get_interop(kind).constants(policy, options)
    return {name: value.detach().clone().contiguous() for name, value in state.items()}
