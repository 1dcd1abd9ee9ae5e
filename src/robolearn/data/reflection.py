"""Samples seen in a mirror: a task whose scene is its own mirror image has twice the demonstrations."""

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from robolearn import rng
from robolearn.errors import UserError
from robolearn.types import Batch, Spec


class AntidiagonalReflection:
    """Mirrors samples at the line from the lower left to the upper right of a square scene.

    A point (x, y), with y downwards, becomes (size - y, size - x), and every image changes likewise. PushT is its own
    mirror image there: the line is the axis of the goal's T, and no law of its physics tells left from right. All
    frames and actions of a sample change together.

    Args:
        size: Side of the square, in the units of the positions.
        positions: The keys that hold positions (x, y), in whose place come those of the mirrored points.
        probability: Share of the samples that change.
    """

    def __init__(
        self,
        size: Annotated[float, Gt(0)] = 512.0,
        positions: Sequence[str] = ("observation.state", "action"),
        probability: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    ) -> None:
        self.size, self.positions, self.probability = size, tuple(positions), probability

    def __call__(self, batch: Batch) -> Batch:
        """Change the positions (B, T, 2) and all images (B, T, C, H, W) of some samples; other entries stay."""
        device = batch["index"].device
        mirrored = rng.rand((len(batch["index"]),), device) < self.probability
        changed = dict(batch)
        for key, value in batch.items():
            if key in self.positions:
                changed[key] = _where(mirrored, self.size - value.flip(-1), value)
            elif key.startswith("observation.") and value.ndim == 5:
                changed[key] = _where(mirrored, value.flip(-2, -1).transpose(-2, -1), value)
        return changed

    def check(self, spec: Spec) -> None:
        """See that a dataset can be mirrored.

        Raises:
            UserError: A key holds no position, an image is not square, or an observation would stay as it was.
        """
        features = {**spec.observation, "action": spec.action}
        for key in self.positions:
            if key not in features or features[key].shape != (2,):
                found = f"has shape {features[key].shape}" if key in features else "is not in the dataset"
                raise UserError(
                    f"image_transforms.positions: {key} {found}, and a position has two coordinates",
                    key="image_transforms.positions",
                    fix="name the keys that hold positions, or set image_transforms=none",
                )
        for key, feature in features.items():
            square = feature.kind == "VISUAL" and feature.shape[-1] == feature.shape[-2]
            if not square and key not in self.positions:
                raise UserError(
                    f"image_transforms: {key} {feature.shape} is neither a square image nor one of "
                    f"image_transforms.positions={list(self.positions)}, and would not be mirrored with the others",
                    key="image_transforms",
                    fix="set image_transforms=none",
                )


def _where(mirrored: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(mirrored.view(-1, *[1] * (old.ndim - 1)), new, old)
