"""The units of the Aloha robots that pi0 was trained on, and joint actions as differences from the state.

The constants are those of openpi's ``aloha_policy`` and of Interbotix' drivers.
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
HORN, ARM = 0.022, 0.036  # metres; the linkage from the motor's angle to the fingers' position
ANGLES = (0.4, 1.5)  # radians of pi0's gripper, closed and open
JOINT = (-0.6213, 1.4910)  # radians of Aloha's leader, closed and open


class Frames(Protocol):
    """A loaded dataset."""

    num_frames: int

    def batch(self, indices: Tensor, window: Window, *, keys: Collection[str] | None = None) -> Batch:
        """The frames `indices` with their windows."""
        ...


class RunningMoments:
    """Mean, standard deviation and range of vectors (n, D), added in parts."""

    def __init__(self) -> None:
        self._count = 0
        self._parts: list[Tensor] = []

    def add(self, vectors: Tensor) -> None:
        """Add vectors (n, D)."""
        vectors = vectors.cpu().double()
        self._count += len(vectors)
        self._parts.append(torch.stack([vectors.sum(0), vectors.square().sum(0), vectors.amin(0), vectors.amax(0)]))

    def stats(self) -> dict[str, Tensor]:
        """``mean``, ``std``, ``min`` and ``max`` so far, float32 (D,) each."""
        sums, squares, low, high = torch.stack(self._parts, dim=1)
        mean = sums.sum(0) / self._count
        std = (squares.sum(0) / self._count - mean.square()).clamp(min=0).sqrt()
        found = {"mean": mean, "std": std, "min": low.amin(0), "max": high.amax(0)}
        return {name: value.float() for name, value in found.items()}


class AlohaUnits:
    """Converts states and actions of Aloha before they are normalised, and actions back.

    Args:
        spec: State and action must have Aloha's 14 dimensions.
        to_pi0_units: Convert to the units of pi0's own robots.
        delta: Subtract the state of the newest frame from joint actions.
        convert_stats: Compute the statistics of the converted states and actions.

    Raises:
        UserError: State or action have another shape.
    """

    def __init__(self, spec: Spec, to_pi0_units: bool, delta: bool, convert_stats: bool = True) -> None:
        key = "adapt_to_pi_aloha" if to_pi0_units else "use_delta_joint_actions_aloha"
        found = spec.observation[STATE].shape if STATE in spec.observation else None
        if found != (DIM,) or spec.action.shape != (DIM,):
            raise UserError(
                f"policy.{key}=true is for Aloha's {DIM} joints, but {STATE} has shape {found} and action "
                f"{spec.action.shape}",
                key=f"policy.{key}",
                fix="set it to false",
            )
        self.to_pi0_units, self.delta, self.convert_stats = to_pi0_units, delta, convert_stats

    def encode(self, batch: Batch) -> Batch:
        """A new batch with states (B, T, 14) and, if present, actions (B, T, 14) converted."""
        converted = dict(batch)
        state = batch[STATE]
        if self.to_pi0_units:
            state = _convert(state, _gripper_from_state)
            converted[STATE] = state
        if "action" in batch:
            action = batch["action"]
            if self.to_pi0_units:
                action = _convert(action, _gripper_from_action)
            converted["action"] = action - self._base(state) if self.delta else action
        return converted

    def decode(self, action: Tensor, batch: Batch) -> Tensor:
        """Actions (B, T, 14) in the robot's units, given its observation, `batch`."""
        if self.delta:
            state = batch[STATE]
            action = action + self._base(_convert(state, _gripper_from_state) if self.to_pi0_units else state)
        return _convert(action, _gripper_to_action) if self.to_pi0_units else action

    def compute_stats(self, frames: Frames, window: Window, stats: Stats) -> Stats:
        """Statistics of a dataset in these units, over the actions of all windows without padding.

        Args:
            frames: The dataset, loaded.
            window: The frames that the policy needs.
            stats: Statistics in the dataset's own units; kept for all other keys.
        """
        if not self.convert_stats:
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
        """The reference of joint actions (B, 1, 14): the newest state, 0 for grippers."""
        arms = state[:, -1:].unflatten(-1, ARMS)
        return torch.cat([arms[..., :6], torch.zeros_like(arms[..., 6:])], dim=-1).flatten(-2)


def _convert(joints: Tensor, gripper: Callable[[Tensor], Tensor]) -> Tensor:
    """Negate the second and third joint of both arms, and convert the grippers (..., 14)."""
    arms = joints.unflatten(-1, ARMS)
    parts = [arms[..., :1], -arms[..., 1:3], arms[..., 3:6], gripper(arms[..., 6:])]
    return torch.cat(parts, dim=-1).flatten(-2)


def _gripper_from_state(opening: Tensor) -> Tensor:
    """From the normalised opening of the fingers to the normalised angle of pi0's gripper."""
    distance = _from_unit(opening, FINGERS)
    sine = (HORN**2 + distance**2 - ARM**2) / (2 * HORN * distance)
    return _to_unit(sine.clamp(-1, 1).arcsin(), ANGLES)


def _gripper_to_action(fraction: Tensor) -> Tensor:
    return _to_unit(_from_unit(fraction, ANGLES), JOINT)


def _gripper_from_action(fraction: Tensor) -> Tensor:
    return _to_unit(_from_unit(fraction, JOINT), ANGLES)


def _to_unit(value: Tensor, ends: tuple[float, float]) -> Tensor:
    return (value - ends[0]) / (ends[1] - ends[0])


def _from_unit(fraction: Tensor, ends: tuple[float, float]) -> Tensor:
    return fraction * (ends[1] - ends[0]) + ends[0]
