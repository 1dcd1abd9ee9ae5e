"""Random changes of training images, on the device and before they become floats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from robolearn.errors import UserError, did_you_mean, one_line
from robolearn.types import Batch, NonNegative, Spec

Transform = Callable[[Tensor], Tensor]


class SharpnessJitter:
    """Change the sharpness by a factor drawn evenly from `sharpness`: 0 blurs, 1 changes nothing."""

    def __init__(self, sharpness: float | Sequence[float]):
        if isinstance(sharpness, int | float):
            low, high = max(1.0 - sharpness, 0.0), 1.0 + sharpness
        else:
            low, high = sharpness
        if not 0 <= low <= high:
            raise UserError(
                f"image_transforms: sharpness [{low}, {high}] should be a range from 0 upwards.", key="image_transforms"
            )
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
KEYS = ("weight", "type", "kwargs", "transform")


class ImageTransforms:
    """For every sample and camera, draw some of the named transforms and apply them to its uint8 images.

    The frames of one window change alike, so that what moves between them is the robot and not the light. Draws come
    from torch's default generator of the CPU, whose state a checkpoint holds, and nothing waits for the device as long
    as the transforms draw there too, which those of torchvision do.

    Args:
        max_num_transforms: How many are applied: this many, or all if there are fewer.
        exact: False: anything from none to `max_num_transforms`, evenly drawn.
        random_order: In the order drawn, not as listed.
        per_sample: Each sample has a draw of its own; false: all samples of a batch and camera change alike, which
            gives a GPU one operation instead of one for each sample.
        tfs: By name: ``weight`` (chance to be drawn, against the others; 0 leaves it out), and either ``type``
            (Identity, ColorJitter or SharpnessJitter) and ``kwargs``, or ``transform``, any callable from images
            (T, C, H, W) to images of the same shape, such as those of `torchvision.transforms.v2`.

    Raises:
        UserError: A type is unknown, or its arguments do not fit.
    """

    def __init__(
        self,
        max_num_transforms: NonNegative = 3,
        exact: bool = True,
        random_order: bool = False,
        per_sample: bool = True,
        tfs: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        built = {name: _build(name, **tf) for name, tf in (tfs or {}).items()}
        weights = {name: float(tf.get("weight", 1.0)) for name, tf in (tfs or {}).items()}
        self.transforms = {name: transform for name, transform in built.items() if weights[name] > 0}
        self.weights = torch.tensor([weights[name] for name in self.transforms])
        self.count = min(max_num_transforms, len(self.transforms))
        self.exact, self.random_order, self.per_sample = exact, random_order, per_sample

    def __call__(self, batch: Batch) -> Batch:
        """Change every uint8 entry of key ``observation.*`` with shape (B, T, C, H, W); other entries stay."""
        if not self.count:
            return batch
        return {key: self._apply(value) if _is_image(key, value) else value for key, value in batch.items()}

    def check(self, spec: Spec) -> None:
        """See that every transform keeps the images of every camera what they are.

        Raises:
            UserError: One refuses them, or changes their size or dtype.
        """
        for key, feature in spec.of_kind("VISUAL").items():
            images = torch.zeros(1, *feature.shape, dtype=torch.uint8)
            for name, transform in self.transforms.items():
                key_path = f"image_transforms.tfs.{name}"
                try:
                    changed = transform(images)
                except (RuntimeError, TypeError, ValueError) as error:
                    raise UserError(
                        f"{key_path} does not take the images of {key} {feature.shape}: {one_line(error)}.",
                        key=key_path,
                    ) from error
                if changed.shape != images.shape or changed.dtype != images.dtype:
                    raise UserError(
                        f"{key_path} makes {changed.dtype} {tuple(changed.shape[1:])} of the images of {key}, "
                        f"torch.uint8 {feature.shape}; use one that keeps size and dtype.",
                        key=key_path,
                    )

    def _apply(self, images: Tensor) -> Tensor:
        if not self.per_sample:
            return self._apply_one(images.flatten(0, 1)).view(images.shape)
        return torch.stack([self._apply_one(sample) for sample in images])

    def _apply_one(self, images: Tensor) -> Tensor:
        count = self.count if self.exact else int(torch.randint(self.count + 1, ()))
        drawn = torch.multinomial(self.weights, count).tolist() if count else []
        transforms = list(self.transforms.values())
        for index in drawn if self.random_order else sorted(drawn):
            images = transforms[index](images)
        return images


def _is_image(key: str, value: Tensor) -> bool:
    return key.startswith("observation.") and value.dtype == torch.uint8 and value.ndim == 5


def _build(
    name: str,
    type: str | None = None,  # noqa: A002  (the reference's key)
    weight: float = 1.0,
    kwargs: Mapping[str, Any] | None = None,
    transform: Transform | None = None,
    **others: Any,
) -> Transform:
    key_path = f"image_transforms.tfs.{name}"
    if others:
        other = next(iter(others))
        raise UserError(
            f"{key_path}.{other}: there is weight, type, kwargs and transform{did_you_mean(other, KEYS)}.", key=key_path
        )
    if not (isinstance(weight, int | float) and 0 <= weight < float("inf")):
        raise UserError(f"{key_path}.weight={weight} must be a finite number that is not negative.", key=key_path)
    if transform is not None:
        if type is not None or kwargs:
            raise UserError(f"{key_path} has a transform and a type or kwargs: give one of them.", key=key_path)
        if not callable(transform):
            raise UserError(
                f"{key_path}.transform must have a _target_, such as torchvision.transforms.v2.GaussianBlur.",
                key=key_path,
            )
        return transform
    if type not in TYPES:
        raise UserError(
            f"{key_path}.type is {type!r}, but {', '.join(TYPES)} are known{did_you_mean(str(type), TYPES)}; any other "
            f"goes under {key_path}.transform with its _target_.",
            key=key_path,
        )
    try:
        return TYPES[type](**(kwargs or {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"{key_path}.kwargs do not fit {type}: {str(error).rstrip('.')}.", key=key_path) from None
