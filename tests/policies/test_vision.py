"""Image encoders: cropping, spatial softmax, and backbone weights from a file."""

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from robolearn.errors import UserError
from robolearn.policies.nn.vision import ImageEncoder, SpatialSoftmax, crop_images, load_resnet_weights, resnet_body

SIZE = (5, 7)


def coordinates(batch: int = 64, frames: int = 2, cameras: int = 2, height: int = 8, width: int = 9) -> torch.Tensor:
    """Images (B, T, cameras, 2, H, W) whose channels hold each pixel's row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).float().expand(batch, frames, cameras, 2, height, width)


def corners(crops: torch.Tensor) -> torch.Tensor:
    """Row and column (B, T, cameras, 2) of the pixel in the upper left corner."""
    return crops[..., 0, 0]


def test_crops_are_windows_of_the_image() -> None:
    crops = crop_images(coordinates(), SIZE, random=True, per_sample=True)
    assert crops.shape == (64, 2, 2, 2, *SIZE)
    window = coordinates(1, 1, 1, *SIZE)
    torch.testing.assert_close(crops - corners(crops)[..., None, None], window.expand_as(crops))


def test_each_sample_is_cropped_at_its_own_position() -> None:
    found = corners(crop_images(coordinates(), SIZE, random=True, per_sample=True))[:, 0, 0]
    assert len(found.unique(dim=0)) > 1


def test_all_frames_and_cameras_of_a_sample_are_cropped_alike() -> None:
    found = corners(crop_images(coordinates(), SIZE, random=True, per_sample=True))
    assert torch.equal(found, found[:, :1, :1].expand_as(found))


def test_one_crop_a_batch_is_the_same_for_all() -> None:
    torch.manual_seed(0)
    batches = [corners(crop_images(coordinates(4), SIZE, random=True, per_sample=False)) for _ in range(16)]
    assert all(torch.equal(found, found[:1, :1, :1].expand_as(found)) for found in batches)
    assert len({tuple(found[0, 0, 0].tolist()) for found in batches}) > 1


@pytest.mark.parametrize("per_sample", [True, False])
def test_random_positions_reach_every_place_that_fits(per_sample: bool) -> None:
    torch.manual_seed(0)
    crops = [crop_images(coordinates(8), SIZE, random=True, per_sample=per_sample) for _ in range(200)]
    found = {tuple(corner.tolist()) for crop in crops for corner in corners(crop)[:, 0, 0]}
    assert found == {(row, column) for row in range(4) for column in range(3)}


def test_without_chance_the_crop_is_in_the_middle() -> None:
    found = corners(crop_images(coordinates(), (4, 5), random=False, per_sample=True))
    assert torch.equal(found, torch.tensor([2.0, 2.0]).expand_as(found))


def test_a_crop_of_the_whole_image_changes_nothing() -> None:
    images = torch.rand(3, 2, 1, 3, 8, 9)
    assert torch.equal(crop_images(images, (8, 9), random=True, per_sample=True), images)


def slow_spatial_softmax(features: torch.Tensor, keypoints: nn.Conv2d) -> torch.Tensor:
    """The mean x and y of each keypoint's heatmap, one pixel after the other."""
    maps = keypoints(features)
    batch, count, height, width = maps.shape
    result = torch.zeros(batch, count, 2)
    for b in range(batch):
        for k in range(count):
            weights = maps[b, k].exp() / maps[b, k].exp().sum()
            for row in range(height):
                for column in range(width):
                    x, y = 2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1
                    result[b, k] += weights[row, column] * torch.tensor([x, y])
    return result


def test_spatial_softmax_is_the_mean_position() -> None:
    torch.manual_seed(0)
    pool = SpatialSoftmax((4, 3, 5), num_keypoints=6)
    features = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(pool(features), slow_spatial_softmax(features, pool.keypoints))


def test_spatial_softmax_finds_a_bright_pixel() -> None:
    pool = SpatialSoftmax((1, 5, 5), num_keypoints=1)
    nn.init.ones_(pool.keypoints.weight)
    features = torch.zeros(1, 1, 5, 5)
    features[0, 0, 1, 4] = 1000
    torch.testing.assert_close(pool(features), torch.tensor([[[1.0, -0.5]]]))


def test_encoder_gives_two_numbers_a_keypoint() -> None:
    encoder = ImageEncoder((3, 40, 48), "resnet18", use_group_norm=True, num_keypoints=5)
    assert encoder.out_features == 10
    assert encoder(torch.rand(2, 3, 40, 48)).shape == (2, 10)


def test_group_norm_replaces_every_batch_norm() -> None:
    body = resnet_body("resnet18", "group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    norms = [module for module in body.modules() if isinstance(module, nn.GroupNorm)]
    assert all(norm.num_channels // norm.num_groups == 16 for norm in norms)
    assert norms


def test_building_an_encoder_leaves_batch_statistics_alone() -> None:
    encoder = ImageEncoder((3, 64, 64), "resnet18", use_group_norm=False, num_keypoints=2)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 0 and not norm.running_mean.any() for norm in norms)
    assert encoder.training


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UserError, match=r"did you mean 'resnet18'\?") as caught:
        resnet_body("resnet19", "group")
    assert caught.value.key == "policy.vision_backbone"


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return torchvision.models.resnet18(weights=None).state_dict()


def filled_from(path: str) -> nn.Sequential:
    body = resnet_body("resnet18", "batch")
    load_resnet_weights(body, "resnet18", path)
    return body


def holds(body: nn.Sequential, weights: dict[str, torch.Tensor]) -> bool:
    return torch.equal(body[0].weight, weights["conv1.weight"]) and torch.equal(
        body[7][1].conv2.weight, weights["layer4.1.conv2.weight"]
    )


def test_weights_come_from_a_file(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    torch.save(weights, tmp_path / "resnet.pth")
    assert holds(filled_from(str(tmp_path / "resnet.pth")), weights)


def test_weights_come_by_name_from_torch_hubs_folder(
    tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    torch.save(weights, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert holds(filled_from("ResNet18_Weights.IMAGENET1K_V1"), weights)


def test_a_name_whose_file_is_not_there_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UserError, match=r"resnet18-f37072fd.pth are not there and nothing is downloaded.*=PATH or null"
    ):
        filled_from("ResNet18_Weights.IMAGENET1K_V1")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/no.pth are not there.*policy.pretrained_backbone_weights=PATH or null"):
        filled_from(str(tmp_path / "no.pth"))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"=ResNet18_Weights.V9 is neither a file nor a weight torchvision knows"):
        filled_from("ResNet18_Weights.V9")


def test_weights_of_another_network_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    others = {name: value for name, value in weights.items() if not name.startswith("layer4")}
    torch.save(others, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth does not hold the weights of resnet18: .*layer4"):
        filled_from(str(tmp_path / "other.pth"))


@pytest.mark.parametrize("content", [b"hello", b"", b"\x80\x02garbage"], ids=["text", "empty", "pickle"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "text.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"text.pth is no file of weights.*or null"):
        filled_from(str(tmp_path / "text.pth"))


def test_a_file_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list.pth does not hold the weights of resnet18"):
        filled_from(str(tmp_path / "list.pth"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no file of weights \(IsADirectoryError\)"):
        filled_from(str(tmp_path))


def test_refuses_images_that_leave_a_feature_map_of_one_position() -> None:
    with pytest.raises(UserError, match=r"policy\.crop_shape .* larger than 32 pixels"):
        ImageEncoder((3, 32, 32), "resnet18", use_group_norm=True, num_keypoints=2)
