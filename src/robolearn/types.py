"""The types that every module shares: batches of tensors, and what their keys hold. Imports no torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval

if TYPE_CHECKING:  # processes that only simulate start without torch
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""Tensors by dataset key (``observation.state``, ``action``, ``action_is_pad``), batch dimension first.

Functions return new dicts and never change the one they were given.
"""

Stats = dict[str, dict[str, "Tensor"]]
"""``mean``, ``std``, ``min`` and ``max`` of each key; of images per channel, shape (C, 1, 1), for values in [0, 1]."""

Kind = Literal["VISUAL", "STATE", "ENV", "ACTION"]
"""What a feature is: a camera image, the robot's own state, the state of its surroundings, or an action."""

# Ranges of options, as annotations of constructors; `robolearn.config.validate` checks them. The upper bounds are far
# above what anyone trains with: they refuse in a sentence what would end in a lack of memory.
NonNegative = Annotated[int, Interval(ge=0, le=1_000_000_000)]
Positive = Annotated[int, Interval(ge=1, le=1_000_000_000)]
Seed = Annotated[int, Interval(ge=0, le=2**31 - 1)]
Size = Annotated[int, Interval(ge=1, le=65_536)]
"""A width, the length of a window, or how many samples are drawn."""
Depth = Annotated[int, Interval(ge=1, le=1_000)]
"""A number of layers, heads, iterations or processes."""
Pixels = Annotated[int, Interval(ge=1, le=8_192)]
Weight = Annotated[float, Interval(ge=0, le=1e9)]
PositiveFloat = Annotated[float, Interval(gt=0, le=1e9)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Rate = Annotated[float, Interval(ge=0, lt=1)]
Fps = Annotated[float, Interval(gt=0, le=10_000)]


@dataclass(frozen=True)
class Feature:
    """What one key holds in one frame. Images have shape (C, H, W)."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        """Whether it is a camera image: uint8 in datasets, buffers and observations, where all else is float32."""
        return self.kind == "VISUAL"


@dataclass(frozen=True)
class Spec:
    """The observation and action features of a policy; derived from a dataset or a simulator, never typed by a user.

    Args:
        observation: Features by key; every key starts with ``observation.``.
        action: The feature of the key ``action``.
        fps: Frames a second.
        settings: What else changes the observations, such as ``{"render_quality": "fast"}``; empty where not known.
        tasks: The instructions by task index; empty where unknown.
    """

    observation: dict[str, Feature]
    action: Feature
    fps: float
    settings: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    def of_kind(self, kind: Kind) -> dict[str, Feature]:
        """The observation features of one kind, in their order."""
        return {key: feature for key, feature in self.observation.items() if feature.kind == kind}


@dataclass(frozen=True)
class Window:
    """The frames a policy needs around the sampled frame t, as offsets from t (-1 is the frame before).

    Batches hold one time dimension after the batch dimension, also for a single offset: (B, T, ...).
    Offsets beyond an episode's ends give the nearest frame of that episode, marked in ``<key>_is_pad`` (B, T).
    """

    observation: tuple[int, ...] = (0,)
    action: tuple[int, ...] = (0,)
    reward: tuple[int, ...] = ()


def kind_of(key: str, is_image: bool | None = None) -> Kind:
    """The kind of a feature by LeRobot's names of keys: the only place that reads a kind off a name.

    Args:
        key: The dataset key, such as ``observation.images.top``.
        is_image: Whether the source declares it an image, as the dtypes of ``info.json`` do; None where it does not
            tell (a simulator's observation space, LeRobot's config.json of 2024), so that the name decides.
    """
    if key.startswith("observation.image") if is_image is None else is_image:
        return "VISUAL"
    kinds: dict[str, Kind] = {"action": "ACTION", "observation.environment_state": "ENV"}
    return kinds.get(key, "STATE")
