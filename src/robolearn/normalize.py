"""Normalisation of observations and actions, outside the policies."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from robolearn.errors import UserError
from robolearn.types import Batch, Feature, Kind, Spec, Stats, Window

NormalizationMode = Literal["MEAN_STD", "MIN_MAX", "IDENTITY"]

EPS = 1e-8
REQUIRED_STATS: dict[NormalizationMode, tuple[str, ...]] = {
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "IDENTITY": (),
}


class ActionTransform(Protocol):
    """Units to learn in other than the dataset's; applied before normalisation and inverted after it."""

    def encode(self, batch: Batch) -> Batch:
        """A new batch in the other units, with or without actions."""
        ...

    def decode(self, action: Tensor, batch: Batch) -> Tensor:
        """Actions (B, T, A) in the robot's units, given the observation `batch` in the robot's units."""
        ...

    def compute_stats(self, frames: Any, window: Window, stats: Stats) -> Stats:
        """A loaded dataset's statistics in the other units, given those in its own units."""
        ...


class Normalizer(nn.Module):
    """Normalises features for a policy, and maps its actions back to the robot's units.

    MEAN_STD gives ``(x - mean) / (std + 1e-8)``, MIN_MAX gives ``2 (x - min) / (max - min + 1e-8) - 1``, a value
    in [-1, 1]; IDENTITY changes nothing. Images uint8 in [0, 255] become floats in [0, 1] before that.
    The statistics are buffers, saved with the weights; the constructor checks them.

    Args:
        spec: The features; those whose kind is not in `mapping` are not normalised.
        mapping: The mode of each kind of feature.
        stats: The statistics of each key; without them the buffers wait for ``load_state_dict``.
        each: Statistics of several datasets, for batches with ``dataset_index`` (B,): each sample is normalised by
            those of its own. Predicted actions, and batches without it, use `stats`, the only ones that are saved.
        transform: Units that states and actions are converted to first; `stats` are taken in them.

    Raises:
        UserError: A statistic is missing, not finite, or of another shape than its feature.
    """

    def __init__(
        self,
        spec: Spec,
        mapping: Mapping[Kind, NormalizationMode],
        stats: Stats | None = None,
        each: Sequence[Stats] | None = None,
        transform: ActionTransform | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform
        self.per_dataset_stats = nn.ModuleDict()
        self.modes: dict[str, NormalizationMode] = {}
        self.images = frozenset(spec.of_kind("VISUAL"))
        self.stats = nn.ModuleDict()
        for key, feature in {**spec.observation, "action": spec.action}.items():
            mode = mapping.get(feature.kind, "IDENTITY")
            if mode != "IDENTITY":
                self.modes[key] = mode
                self.stats[_name(key)] = _stats_module(key, feature, mode, stats)
                if each is not None:
                    self.per_dataset_stats[_name(key)] = _stack_stats(
                        [_stats_module(key, feature, mode, one) for one in each]
                    )

    def encode(self, batch: Batch) -> Batch:
        """A new batch, normalised; keys without statistics pass through."""
        if self.transform:
            batch = self.transform.encode(batch)
        indices = batch.get("dataset_index") if self.per_dataset_stats else None
        return {key: self._encode(key, value, indices) for key, value in batch.items()}

    def decode_action(self, action: Tensor, observation: Batch | None = None) -> Tensor:
        """Actions (..., A) in the robot's units.

        Args:
            action: The policy's, normalised (..., A).
            observation: What `encode` was given; needed with a `transform`.
        """
        action = self._unnormalize(action)
        if self.transform:
            assert observation is not None
            action = self.transform.decode(action, observation)
        return action

    def _unnormalize(self, action: Tensor) -> Tensor:
        if "action" not in self.modes:
            return action
        first, second = self._stats("action")
        if self.modes["action"] == "MEAN_STD":
            return action * second + first
        return (action + 1) / 2 * (second - first) + first

    def _encode(self, key: str, value: Tensor, dataset_index: Tensor | None) -> Tensor:
        if key in self.images and value.dtype == torch.uint8:
            value = value.float() / 255
        if key not in self.modes:
            return value
        first, second = self._stats(key, dataset_index)
        if self.modes[key] == "MEAN_STD":
            return (value - first) / (second + EPS)
        return (value - first) / (second - first + EPS) * 2 - 1

    def _stats(self, key: str, dataset_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and std, or minimum and maximum, by the mode of the key; (B, 1, *shape) with a dataset index (B,)."""
        stats = (self.stats if dataset_index is None else self.per_dataset_stats)[_name(key)]
        first, second = (stats.get_buffer(name) for name in REQUIRED_STATS[self.modes[key]])
        if dataset_index is None:
            return first, second
        return first[dataset_index].unsqueeze(1), second[dataset_index].unsqueeze(1)


def _name(key: str) -> str:
    return key.replace(".", "_")  # a module's name must not hold a dot


def _stats_module(key: str, feature: Feature, mode: NormalizationMode, stats: Stats | None) -> nn.Module:
    shape = (feature.shape[0], 1, 1) if feature.kind == "VISUAL" else feature.shape
    module = nn.Module()
    for name in REQUIRED_STATS[mode]:
        value = torch.zeros(shape) if stats is None else _checked_stat(key, name, mode, shape, stats)
        module.register_buffer(name, value)
    return module


def _stack_stats(modules: Sequence[nn.Module]) -> nn.Module:
    """The buffers of all, stacked; not saved, because they belong to the training data."""
    module = nn.Module()
    for name, _ in modules[0].named_buffers():
        rows = torch.stack([one.get_buffer(name) for one in modules])
        module.register_buffer(name, rows, persistent=False)
    return module


def _checked_stat(key: str, name: str, mode: NormalizationMode, shape: tuple[int, ...], stats: Stats) -> Tensor:
    if name not in stats.get(key, {}):
        raise UserError(
            f"The dataset has no '{name}' of {key}, which {mode} needs",
            key="policy.normalization_mapping",
            fix="compute its statistics again or set another mode in policy.normalization_mapping",
        )
    value = stats[key][name].to(torch.float32)
    if value.shape != shape:
        message = f"The statistic '{name}' of {key} has shape {tuple(value.shape)}, its feature needs {shape}."
        raise UserError(message, key=key)
    if not value.isfinite().all():
        message = f"The statistic '{name}' of {key} is not finite"
        raise UserError(message, key=key, fix="compute the dataset's statistics again")
    return value.clone()
