"""Random changes of training images, on the device and before they become floats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from robolearn.errors import UserError
from robolearn.types import Batch

Transform = Callable[[Tensor], Tensor]


class SharpnessJitter:
    """Change the sharpness by a factor drawn evenly from `sharpness`: 0 blurs, 1 changes nothing."""

    def __init__(self, sharpness: float | Sequence[float]):
        if isinstance(sharpness, int | float):
            low, high = max(1.0 - sharpness, 0.0), 1.0 + sharpness
        else:
            low, high = sharpness
        if not 0 <= low <= high:
            raise UserError(f"image_transforms: sharpness [{low}, {high}] should be a range from 0 upwards.")
        self.low, self.high = float(low), float(high)

    def __call__(self, image: Tensor) -> Tensor:
        """Images (..., C, H, W), all by the same factor."""
        factor = self.low + (self.high - self.low) * torch.rand(()).item()
        return v2.functional.adjust_sharpness(image, factor)


TYPES: dict[str, Callable[..., Transform]] = {
    "Identity": v2.Identity,
    "ColorJitter": v2.ColorJitter,
    "SharpnessJitter": SharpnessJitter,
}


class ImageTransforms:
    """For every sample and camera, draw some of the named transforms and apply them to its uint8 images.

    The frames of one window change alike. Draws come from torch's default generator of the CPU, whose state a
    checkpoint holds, and nothing waits for the device.

    Args:
        max_num_transforms: How many are applied: this many, or all if there are fewer.
        random_order: In the order drawn, not as listed.
        tfs: By name: ``weight`` (chance to be drawn, against the others; 0 leaves it out), ``type``
            (Identity, ColorJitter or SharpnessJitter) and ``kwargs``.

    Raises:
        UserError: A type is unknown, or its arguments do not fit.
    """

    def __init__(
        self,
        max_num_transforms: int = 3,
        random_order: bool = False,
        tfs: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        if max_num_transforms < 0:
            raise UserError("image_transforms.max_num_transforms should be 0 or more.")
        chosen = {name: tf for name, tf in (tfs or {}).items() if tf.get("weight", 1.0) > 0}
        self.transforms = [_build(name, **tf) for name, tf in chosen.items()]
        self.weights = torch.tensor([float(tf.get("weight", 1.0)) for tf in chosen.values()])
        self.count = min(max_num_transforms, len(self.transforms))
        self.random_order = random_order

    def __call__(self, batch: Batch) -> Batch:
        """Change every uint8 entry of key ``observation.*`` with shape (B, T, C, H, W); other entries stay."""
        if not self.count:
            return batch
        return {key: self._apply(value) if _is_image(key, value) else value for key, value in batch.items()}

    def _apply(self, images: Tensor) -> Tensor:
        return torch.stack([self._apply_one(sample) for sample in images])

    def _apply_one(self, images: Tensor) -> Tensor:
        drawn = torch.multinomial(self.weights, self.count).tolist()
        for index in drawn if self.random_order else sorted(drawn):
            images = self.transforms[index](images)
        return images


def _is_image(key: str, value: Tensor) -> bool:
    return key.startswith("observation.") and value.dtype == torch.uint8 and value.ndim == 5


def _build(
    name: str,
    type: Literal["Identity", "ColorJitter", "SharpnessJitter"],  # noqa: A002  (the reference's key)
    weight: float = 1.0,
    kwargs: Mapping[str, Any] | None = None,
) -> Transform:
    if type not in TYPES:
        raise UserError(f"image_transforms.tfs.{name}.type is {type!r}, but {', '.join(TYPES)} are known.")
    try:
        return TYPES[type](**(kwargs or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"image_transforms.tfs.{name}.kwargs do not fit {type}: {error}.") from None
