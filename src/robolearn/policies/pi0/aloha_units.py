"""The units of the Aloha robots that pi0 was trained on, and joint actions as differences from the state.

The numbers are those of openpi's ``aloha_policy`` and of Interbotix' drivers.
"""

from collections.abc import Callable, Collection
from typing import Protocol

import torch
from torch import Tensor

from robolearn.errors import UserError
from robolearn.types import Batch, Spec, Stats, Window

ARMS = (2, 7)  # two arms of six joints and a gripper
DIM = 14
STATE = "observation.state"

FINGERS = (0.01844, 0.05800)  # metres from the gripper's centre, closed and open
HORN, ARM = 0.022, 0.036  # metres; they turn the motor's angle into the fingers' way
ANGLES = (0.4, 1.5)  # radians of pi0's gripper, closed and open
JOINT = (-0.6213, 1.4910)  # radians of Aloha's leader, closed and open


class Frames(Protocol):
    """A loaded dataset."""

    num_frames: int

    def batch(self, indices: Tensor, window: Window, *, keys: Collection[str] | None = None) -> Batch:
        """The frames `indices` with their windows."""
        ...


class RunningMoments:
    """Mean, deviation and range of vectors (n, D) that come in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._parts: list[Tensor] = []

    def add(self, vectors: Tensor) -> None:
        """Take in some vectors (n, D)."""
        vectors = vectors.cpu().double()
        self._count += len(vectors)
        self._parts.append(torch.stack([vectors.sum(0), vectors.square().sum(0), vectors.amin(0), vectors.amax(0)]))

    def stats(self) -> dict[str, Tensor]:
        """What came to, float32 (D,) each."""
        sums, squares, low, high = torch.stack(self._parts, dim=1)
        mean = sums.sum(0) / self._count
        std = (squares.sum(0) / self._count - mean.square()).clamp(min=0).sqrt()
        found = {"mean": mean, "std": std, "min": low.amin(0), "max": high.amax(0)}
        return {name: value.float() for name, value in found.items()}


class AlohaUnits:
    """Converts states and actions of Aloha before they are normalised, and actions back.

    Args:
        spec: State and action must be Aloha's 14 numbers.
        to_pi: Into the units of pi0's own robots.
        delta: Joint actions less the state of the newest frame.
        converts_statistics: The statistics are to be those of what is converted.

    Raises:
        UserError: The robot is no Aloha.
    """

    def __init__(self, spec: Spec, to_pi: bool, delta: bool, converts_statistics: bool = True) -> None:
        key = "adapt_to_pi_aloha" if to_pi else "use_delta_joint_actions_aloha"
        found = spec.observation[STATE].shape if STATE in spec.observation else None
        if found != (DIM,) or spec.action.shape != (DIM,):
            raise UserError(
                f"policy.{key}=true is for Aloha's {DIM} joints, but {STATE} has shape {found} and action "
                f"{spec.action.shape}; set it to false."
            )
        self.to_pi, self.delta, self.converts_statistics = to_pi, delta, converts_statistics

    def encode(self, batch: Batch) -> Batch:
        """A new batch with states (B, T, 14) and, where they are there, actions (B, T, 14) converted."""
        converted = dict(batch)
        state = batch[STATE]
        if self.to_pi:
            state = _convert(state, _gripper_from_state)
            converted[STATE] = state
        if "action" in batch:
            action = batch["action"]
            if self.to_pi:
                action = _convert(action, _gripper_from_action)
            converted["action"] = action - self._base(state) if self.delta else action
        return converted

    def decode(self, action: Tensor, batch: Batch) -> Tensor:
        """Actions (B, T, 14) for the robot that saw `batch`."""
        if self.delta:
            state = batch[STATE]
            action = action + self._base(_convert(state, _gripper_from_state) if self.to_pi else state)
        return _convert(action, _gripper_to_action) if self.to_pi else action

    def compute_stats(self, frames: Frames, window: Window, stats: Stats) -> Stats:
        """Statistics of a dataset in these units, over all actions of all windows that are no padding.

        Args:
            frames: The dataset, loaded.
            window: The frames that the policy needs.
            stats: In the dataset's own units; other keys' are taken from there.
        """
        if not self.converts_statistics:
            return stats
        window = Window(action=window.action if self.delta else (0,))
        moments = {STATE: RunningMoments(), "action": RunningMoments()}
        for indices in torch.arange(frames.num_frames).split(4096):
            batch = frames.batch(indices, window, keys=moments)
            converted = self.encode(batch)
            for key, found in moments.items():
                found.add(converted[key][~batch[f"{key}_is_pad"]])
        return {**stats, **{key: {**stats.get(key, {}), **found.stats()} for key, found in moments.items()}}

    def _base(self, state: Tensor) -> Tensor:
        """What joint actions are counted from (B, 1, 14): the newest state, 0 for grippers."""
        arms = state[:, -1:].unflatten(-1, ARMS)
        return torch.cat([arms[..., :6], torch.zeros_like(arms[..., 6:])], dim=-1).flatten(-2)


def _convert(joints: Tensor, gripper: Callable[[Tensor], Tensor]) -> Tensor:
    """Count the second and third joint of both arms the other way, and convert the grippers (..., 14)."""
    arms = joints.unflatten(-1, ARMS)
    parts = [arms[..., :1], -arms[..., 1:3], arms[..., 3:6], gripper(arms[..., 6:])]
    return torch.cat(parts, dim=-1).flatten(-2)


def _gripper_from_state(opening: Tensor) -> Tensor:
    """The share of the way of the fingers, as a share of the way of the motor's angle."""
    way = _from_unit(opening, FINGERS)
    sine = (HORN**2 + way**2 - ARM**2) / (2 * HORN * way)
    return _to_unit(sine.clamp(-1, 1).arcsin(), ANGLES)


def _gripper_to_action(share: Tensor) -> Tensor:
    return _to_unit(_from_unit(share, ANGLES), JOINT)


def _gripper_from_action(share: Tensor) -> Tensor:
    return _to_unit(_from_unit(share, JOINT), ANGLES)


def _to_unit(value: Tensor, ends: tuple[float, float]) -> Tensor:
    return (value - ends[0]) / (ends[1] - ends[0])


def _from_unit(share: Tensor, ends: tuple[float, float]) -> Tensor:
    return share * (ends[1] - ends[0]) + ends[0]
