"""The words every module shares: batches of tensors, and what their keys hold."""

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Batch = dict[str, Tensor]
"""Tensors by dataset key (``observation.state``, ``action``, ``action_is_pad``), batch dimension first.

Functions return new dicts and never change the one they were given.
"""

Stats = dict[str, dict[str, Tensor]]
"""``mean``, ``std``, ``min`` and ``max`` of each key; of images per channel, shape (C, 1, 1), for values in [0, 1]."""

Kind = Literal["VISUAL", "STATE", "ENV", "ACTION"]
"""What a feature is: a camera image, the robot's own state, the state of its surroundings, or an action."""


@dataclass(frozen=True)
class Feature:
    """What one key holds in one frame. Images have shape (C, H, W)."""

    kind: Kind
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Spec:
    """What is observed and what is commanded; derived from a dataset or a simulator, never typed by a user.

    Args:
        observation: Features by key; every key starts with ``observation.``.
        action: The feature of the key ``action``.
        fps: Frames a second.
        settings: What else changes the observations, such as ``{"render_quality": "fast"}``; empty where not known.
        tasks: What is done, in words, by task number; empty where not told.
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
