"""Normalisation of observations and actions, once, outside the policies."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from robolearn.errors import UserError
from robolearn.types import Batch, Feature, Kind, Spec, Stats, Window

Mode = Literal["MEAN_STD", "MIN_MAX", "IDENTITY"]

EPS = 1e-8
NEEDS: dict[Mode, tuple[str, ...]] = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "IDENTITY": ()}


class ActionTransform(Protocol):
    """Other units of the robot than the dataset's, to learn in; applied before normalisation, undone after it."""

    def encode(self, batch: Batch) -> Batch:
        """A new batch in the other units; there may be no actions in it."""
        ...

    def decode(self, action: Tensor, batch: Batch) -> Tensor:
        """Actions (B, T, A) in the robot's units, for what was observed, `batch`, in the robot's units."""
        ...

    def compute_stats(self, frames: Any, window: Window, stats: Stats) -> Stats:
        """A loaded dataset's statistics in the other units, given those in its own."""
        ...


class Normalizer(nn.Module):
    """Maps features to the scale a policy learns in, and its actions back.

    MEAN_STD gives ``(x - mean) / (std + 1e-8)``, MIN_MAX gives ``2 (x - min) / (max - min + 1e-8) - 1``, a value
    in [-1, 1]; IDENTITY changes nothing. Images come as uint8 and leave as floats in [0, 1], then normalised.
    The statistics are buffers, so they travel with the weights; they are checked here and never again.

    Args:
        spec: The features; those named nowhere in `mapping` stay as they are.
        mapping: The mode of each kind of feature.
        stats: The statistics of each key; without them the buffers wait for ``load_state_dict``.
        each: Statistics of several datasets, for batches with ``dataset_index`` (B,): each sample is brought to scale
            by those of its own. Actions, and batches without it, are scaled by `stats`, which alone are saved.
        transform: Units that states and actions are converted to first; `stats` are taken in them.

    Raises:
        UserError: A statistic is missing, not finite, or of another shape than its feature.
    """

    def __init__(
        self,
        spec: Spec,
        mapping: Mapping[Kind, Mode],
        stats: Stats | None = None,
        each: Sequence[Stats] | None = None,
        transform: ActionTransform | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.each = nn.ModuleDict()
        self.modes: dict[str, Mode] = {}
        self.images = frozenset(spec.of_kind("VISUAL"))
        self.stats = nn.ModuleDict()
        for key, feature in {**spec.observation, "action": spec.action}.items():
            mode = mapping.get(feature.kind, "IDENTITY")
            if mode != "IDENTITY":
                self.modes[key] = mode
                self.stats[_name(key)] = _buffers(key, feature, mode, stats)
                if each is not None:
                    self.each[_name(key)] = _stacked([_buffers(key, feature, mode, one) for one in each])

    def encode(self, batch: Batch) -> Batch:
        """A new batch in the policy's scale; keys without statistics pass through."""
        if self.transform:
            batch = self.transform.encode(batch)
        owner = batch.get("dataset_index") if self.each else None
        return {key: self._encode(key, value, owner) for key, value in batch.items()}

    def decode_action(self, action: Tensor, observation: Batch | None = None) -> Tensor:
        """Actions (..., A) in the policy's scale, as the robot takes them.

        Args:
            action: What the policy gave.
            observation: What it saw, as `encode` was given it; needed where there is a `transform`.
        """
        action = self._unscaled(action)
        if self.transform:
            assert observation is not None
            action = self.transform.decode(action, observation)
        return action

    def _unscaled(self, action: Tensor) -> Tensor:
        if "action" not in self.modes:
            return action
        first, second = self._stats("action")
        if self.modes["action"] == "MEAN_STD":
            return action * second + first
        return (action + 1) / 2 * (second - first) + first

    def _encode(self, key: str, value: Tensor, owner: Tensor | None) -> Tensor:
        if key in self.images and value.dtype == torch.uint8:
            value = value.float() / 255
        if key not in self.modes:
            return value
        first, second = self._stats(key, owner)
        if self.modes[key] == "MEAN_STD":
            return (value - first) / (second + EPS)
        return (value - first) / (second - first + EPS) * 2 - 1

    def _stats(self, key: str, owner: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and deviation, or minimum and maximum, as the key's mode needs; (B, 1, *shape) with owners (B,)."""
        stats = (self.stats if owner is None else self.each)[_name(key)]
        first, second = (stats.get_buffer(name) for name in NEEDS[self.modes[key]])
        if owner is None:
            return first, second
        return first[owner].unsqueeze(1), second[owner].unsqueeze(1)


def _name(key: str) -> str:
    return key.replace(".", "_")  # a module's name must not hold a dot


def _buffers(key: str, feature: Feature, mode: Mode, stats: Stats | None) -> nn.Module:
    shape = (feature.shape[0], 1, 1) if feature.kind == "VISUAL" else feature.shape
    module = nn.Module()
    for name in NEEDS[mode]:
        value = torch.zeros(shape) if stats is None else _checked(key, name, mode, shape, stats)
        module.register_buffer(name, value)
    return module


def _stacked(modules: Sequence[nn.Module]) -> nn.Module:
    """Their buffers, one row each; not saved, because they belong to the training data."""
    module = nn.Module()
    for name, _ in modules[0].named_buffers():
        rows = torch.stack([one.get_buffer(name) for one in modules])
        module.register_buffer(name, rows, persistent=False)
    return module


def _checked(key: str, name: str, mode: Mode, shape: tuple[int, ...], stats: Stats) -> Tensor:
    if name not in stats.get(key, {}):
        raise UserError(
            f"The dataset has no '{name}' of {key}, which {mode} needs; "
            "compute its statistics again or set another mode in policy.normalization_mapping."
        )
    value = stats[key][name].to(torch.float32)
    if value.shape != shape:
        raise UserError(f"The statistic '{name}' of {key} has shape {tuple(value.shape)}, its feature needs {shape}.")
    if not value.isfinite().all():
        raise UserError(f"The statistic '{name}' of {key} is not finite; compute the dataset's statistics again.")
    return value.clone()
