"""An exponential moving average of a policy's weights, which acts better than the weights themselves."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.types import Fraction, PositiveFloat


class Ema:
    """Keeps ``average = d * average + (1 - d) * weights`` with a decay d that grows: ``1 - (1 + t) ** -power``.

    Written here rather than taken from a library because it must not wait for the device (torch's AveragedModel reads
    its counter back each step) and must average a whole module that can act at any time.

    Args:
        model: The module averaged; buffers are copied, not averaged.
        decay: The decay's upper bound.
        power: How fast the decay grows; 0.75 reaches 0.999 after 10,000 steps.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: Fraction = 0.9999,
        power: PositiveFloat = 0.75,
    ) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.power = power
        self.updates = 0
        self._averaged: list[Tensor] = list(self.model.parameters())
        self._current: list[Tensor] = list(model.parameters())
        self._buffers = list(self.model.buffers()), list(model.buffers())

    @torch.no_grad()
    def copy(self) -> None:
        """Start anew from the model's weights as they are now."""
        self.updates = 0
        for averaged, current in zip(self._averaged + self._buffers[0], self._current + self._buffers[1], strict=True):
            averaged.copy_(current)

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the model's weights as they are now."""
        self.updates += 1
        decay = min(self.decay, 1 - (1 + self.updates) ** -self.power)
        torch._foreach_lerp_(self._averaged, self._current, weight=1 - decay)  # pyright: ignore[reportPrivateImportUsage]
        for averaged, current in zip(*self._buffers, strict=True):
            averaged.copy_(current)

    def state_dict(self) -> dict[str, Any]:
        """The count of updates; the averaged weights are saved as the model that acts."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the count."""
        self.updates = state["updates"]
