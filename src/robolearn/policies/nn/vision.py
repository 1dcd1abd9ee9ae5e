"""Image encoders: a torchvision ResNet and a spatial softmax over its features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import center_crop

from robolearn import rng
from robolearn.errors import UserError, one_of

KEY = "policy.pretrained_backbone_weights"


class SpatialSoftmax(nn.Module):
    """Expected image coordinates of learned keypoints (Finn et al. 2016, arXiv:1509.06113, section IV).

    Each keypoint is a softmax over the positions of one linear combination of the feature map's channels; its
    coordinates are the mean x and y under it, in [-1, 1].

    Args:
        feature_shape: (C, H, W) of the feature map.
        num_keypoints: Number of keypoints, K.

    Raises:
        UserError: The map has a single position, where every keypoint would be at 0 whatever the image shows.
    """

    def __init__(self, feature_shape: tuple[int, int, int], num_keypoints: int) -> None:
        super().__init__()
        channels, height, width = feature_shape
        if height * width == 1:
            raise UserError(
                "The images are too small for the backbone, whose feature map has a single position",
                key="policy.crop_shape",
                fix="make policy.crop_shape (or the images) larger than 32 pixels",
            )
        self.keypoints = nn.Conv2d(channels, num_keypoints, kernel_size=1)
        rows, columns = (torch.linspace(-1, 1, n, dtype=torch.float64).float() for n in (height, width))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        self.register_buffer("grid", torch.stack([x.flatten(), y.flatten()], dim=1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Feature maps (B, C, H, W) to keypoints (B, K, 2)."""
        heatmaps = self.keypoints(features).flatten(2).softmax(dim=-1)
        return heatmaps @ cast(Tensor, self.grid)


class ImageEncoder(nn.Module):
    """A torchvision ResNet without its head, a spatial softmax and a linear layer: (B, C, H, W) to (B, 2K).

    Args:
        image_shape: (C, H, W) as the encoder gets it, after any crop.
        vision_backbone: The name of a torchvision ResNet, "resnet18" say.
        use_group_norm: GroupNorm of 16 channels a group in place of BatchNorm, as an EMA of weights needs.
        num_keypoints: K of the spatial softmax.
    """

    def __init__(
        self, image_shape: tuple[int, ...], vision_backbone: str, use_group_norm: bool, num_keypoints: int
    ) -> None:
        super().__init__()
        self.backbone = resnet_body(vision_backbone, "group" if use_group_norm else "batch")
        self.pool = SpatialSoftmax(_feature_shape(self.backbone, image_shape), num_keypoints)
        self.head = nn.Linear(2 * num_keypoints, 2 * num_keypoints)

    @property
    def out_features(self) -> int:
        """2K."""
        return self.head.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Encode images (B, C, H, W) to (B, 2K)."""
        return self.head(self.pool(self.backbone(images)).flatten(1)).relu()


def check_encoder(
    image_shape: tuple[int, ...] | None, crop_shape: Sequence[int] | None, use_group_norm: bool, pretrained: str | None
) -> None:
    """Check the crop before an `ImageEncoder` and the weights that are loaded into it.

    Args:
        image_shape: (C, H, W) before the crop; None without a camera.
        crop_shape: (h, w), or None.
        use_group_norm: The encoder's.
        pretrained: Weights to load into its backbone, or None.

    Raises:
        UserError: The crop does not fit, or the weights do not.
    """
    if crop_shape and len(crop_shape) != 2:
        message = f"policy.crop_shape={list(crop_shape)} must be [height, width] or null."
        raise UserError(message, key="policy.crop_shape")
    if crop_shape and image_shape:
        _, height, width = image_shape
        if crop_shape[0] > height or crop_shape[1] > width:
            raise UserError(
                f"policy.crop_shape={list(crop_shape)} does not fit in the images of {height} x {width} pixels",
                key="policy.crop_shape",
                fix="make it smaller or null",
            )
    if use_group_norm and pretrained:
        raise UserError(
            "policy.pretrained_backbone_weights hold BatchNorm layers, which policy.use_group_norm=true replaces",
            key="policy.pretrained_backbone_weights",
            fix="set policy.use_group_norm=false or policy.pretrained_backbone_weights=null",
        )


def check_resnet(name: str) -> None:
    """Refuse a backbone that torchvision does not have.

    Raises:
        UserError: torchvision has no ResNet of that name.
    """
    names = [n for n in torchvision.models.list_models(torchvision.models) if n.startswith("resnet")]
    one_of("policy.vision_backbone", name, names)


def resnet_body(name: str, norm: Literal["batch", "group", "frozen"], dilate_last: bool = False) -> nn.Sequential:
    """A torchvision ResNet up to its last feature map, with random weights.

    Args:
        name: The ResNet's name.
        norm: BatchNorm, GroupNorm of 16 channels a group, or BatchNorm whose statistics and scale are constants.
        dilate_last: The last stage keeps its input's resolution, by dilation in place of its stride.

    Raises:
        UserError: torchvision has no ResNet of that name, or none of it with dilation.
    """
    check_resnet(name)
    layers = {"batch": None, "group": _group_norm, "frozen": FrozenBatchNorm2d}
    dilation = [False, False, dilate_last]
    try:
        resnet = torchvision.models.get_model(
            name, weights=None, norm_layer=layers[norm], replace_stride_with_dilation=dilation
        )
    except NotImplementedError:
        raise UserError(
            f"policy.replace_final_stride_with_dilation=true: {name} cannot be dilated",
            key="policy.replace_final_stride_with_dilation",
            fix="choose policy.vision_backbone=resnet50 or deeper, or false",
        ) from None
    return nn.Sequential(*list(resnet.children())[:-2])


def load_resnet_weights(body: nn.Sequential, name: str, weights: str) -> None:
    """Fill a ResNet body from a state dict on disk.

    Args:
        body: From `resnet_body`.
        name: The backbone's name.
        weights: A file of torchvision's ResNet weights, or the name of a torchvision weight, which is looked up in
            torch.hub's folder and never downloaded.

    Raises:
        UserError: The file is not there, or holds other parameters.
    """
    path = Path(weights).expanduser()
    if not path.exists() and "." in weights and "/" not in weights:
        try:
            url = torchvision.models.get_weight(weights).url
        except (ValueError, KeyError):
            raise UserError(
                f"policy.pretrained_backbone_weights={weights} is neither a file nor a weight torchvision knows",
                key=KEY,
                fix="give policy.pretrained_backbone_weights=PATH or null",
            ) from None
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        raise UserError(
            f"The backbone weights {path} are not there and nothing is downloaded unasked: "
            f"{_download_command(name, weights)}give policy.pretrained_backbone_weights=PATH or null, which starts "
            "from random ones.",
            key=KEY,
        )
    full = torchvision.models.get_model(name, weights=None)
    try:
        full.load_state_dict(_read_weights(path))
    except (RuntimeError, TypeError) as error:
        message = f"{path} does not hold the weights of {name}: {str(error).splitlines()[-1].strip()}"
        raise UserError(message, key=KEY) from None
    body.load_state_dict(nn.Sequential(*list(full.children())[:-2]).state_dict())


def _download_command(name: str, weights: str) -> str:
    """The command that downloads weights by their torchvision name."""
    if "/" in weights or "_Weights." not in weights:
        return ""
    return f"download them with python -c \"import torchvision; torchvision.models.{name}(weights='{weights}')\", or "


def _read_weights(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # reading bytes that are no pickle ends in errors of every kind
        raise UserError(
            f"policy.pretrained_backbone_weights={path} is no file of weights ({type(error).__name__})",
            key=KEY,
            fix="give one that torch.save wrote, or null",
        ) from error


def crop_images(images: Tensor, size: tuple[int, int], random: bool, per_sample: bool) -> Tensor:
    """Crop images to (B, ..., C, h, w), at the centre or at random positions sampled on the device.

    Args:
        images: (B, ..., C, H, W); all images of one sample (frames, cameras) are cropped at the same position.
        size: (h, w), at most (H, W).
        random: Sample positions, uniform over all that fit; else the centre.
        per_sample: A position for each sample; else one for the whole batch.
    """
    height, width = images.shape[-2:]
    h, w = size
    if not random:
        return center_crop(images, [h, w])
    draws, dim = ((len(images),), 0) if per_sample else ((1,), None)
    top = rng.randint(height - h + 1, draws, images.device, dim)
    left = rng.randint(width - w + 1, draws, images.device, dim)
    rows = top[:, None] + torch.arange(h, device=images.device)
    columns = left[:, None] + torch.arange(w, device=images.device)
    flat = images.flatten(1, -3)
    samples = torch.arange(len(images), device=images.device)
    cropped = flat[samples[:, None, None, None], :, rows[:, None, :, None], columns[:, None, None, :]]
    return cropped.squeeze(1).movedim(-1, 1).unflatten(1, images.shape[1:-2])


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 16, channels)


def _feature_shape(body: nn.Module, image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    training = body.training
    device = next(body.parameters()).device
    with torch.no_grad():
        # Batch statistics must not learn from this probe.
        shape = body.eval()(torch.zeros(1, *image_shape, device=device)).shape[1:]
    body.train(training)
    return cast(tuple[int, int, int], tuple(shape))
