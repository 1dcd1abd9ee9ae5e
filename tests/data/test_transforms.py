"""Random changes of images."""

from pathlib import Path

import pytest
import torch
import yaml

from robolearn.data.transforms import ImageTransforms
from robolearn.errors import UserError

DEFAULT = Path(__file__).resolve().parents[2] / "conf/image_transforms/default.yaml"


def options() -> dict:
    return {key: value for key, value in yaml.safe_load(DEFAULT.read_text()).items() if key != "_target_"}


def images() -> torch.Tensor:
    return torch.randint(0, 256, (4, 2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_changes_images_alone():
    batch = {"observation.image": images(), "action": torch.ones(4, 2, 2), "observation.image_is_pad": torch.ones(4, 2)}
    changed = ImageTransforms(**options())(batch)
    assert changed.keys() == batch.keys()
    assert changed["action"] is batch["action"]
    assert changed["observation.image"].dtype == torch.uint8
    assert changed["observation.image"].shape == (4, 2, 3, 16, 16)
    assert not torch.equal(changed["observation.image"], batch["observation.image"])


def test_seeded_by_torch():
    transforms, results = ImageTransforms(**options()), []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(transforms({"observation.image": images()})["observation.image"])
    assert torch.equal(*results)


def test_frames_of_a_window_change_alike_and_samples_do_not():
    picture = images()[:1, :1].expand(4, 2, 3, 16, 16)
    changed = ImageTransforms(**options())({"observation.image": picture})["observation.image"]
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert not torch.equal(changed[0], changed[1])


def test_nothing_chosen_changes_nothing():
    tfs = {"brightness": {"weight": 0.0, "type": "ColorJitter", "kwargs": {"brightness": 0.5}}}
    batch = {"observation.image": images()}
    assert ImageTransforms(3, False, tfs)(batch)["observation.image"] is batch["observation.image"]
    assert ImageTransforms(0, False, options()["tfs"])(batch)["observation.image"] is batch["observation.image"]


@pytest.mark.parametrize(
    ("tf", "words"),
    [
        ({"type": "Blur"}, "Blur"),
        ({"type": "ColorJitter", "kwargs": {"colour": 1}}, "kwargs"),
        ({"type": "SharpnessJitter", "kwargs": {"sharpness": [1, 0]}}, "range"),
    ],
)
def test_mistakes(tf, words):
    with pytest.raises(UserError, match=words):
        ImageTransforms(3, False, {"mine": tf})
