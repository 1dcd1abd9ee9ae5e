"""Random changes of images."""

from pathlib import Path

import pytest
import torch
import yaml
from torchvision.transforms import v2

from robolearn.data.augment import ImageTransforms
from robolearn.errors import UserError
from robolearn.types import Feature, Spec

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
    assert ImageTransforms(3, tfs=tfs)(batch)["observation.image"] is batch["observation.image"]
    assert ImageTransforms(0, tfs=options()["tfs"])(batch)["observation.image"] is batch["observation.image"]


@pytest.mark.parametrize(
    ("tf", "words"),
    [
        ({"type": "Blur"}, "Blur"),
        ({"type": "ColorJitter", "kwargs": {"colour": 1}}, "kwargs"),
        ({"type": "SharpnessJitter", "kwargs": {"sharpness": [1, 0]}}, "range"),
        ({"type": "ColourJitter"}, "did you mean 'ColorJitter'"),
        ({"type": "Identity", "weigth": 1}, "did you mean 'weight'"),
        ({"type": "Identity", "weight": -1}, "tfs.mine.weight=-1"),
        ({"type": "Identity", "transform": v2.Identity()}, "give one of them"),
        ({"transform": "v2.Identity"}, "must have a _target_"),
    ],
)
def test_mistakes(tf, words):
    with pytest.raises(UserError, match=words):
        ImageTransforms(3, tfs={"mine": tf})


class Add:
    """Adds to every pixel, so that the sum tells what was applied."""

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.amount


class Twice:
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images * 2


BLACK = torch.zeros(400, 1, 3, 1, 1, dtype=torch.uint8)


def applied(**options) -> torch.Tensor:
    """What three counters 1, 4, 16 add up to, for 400 samples."""
    torch.manual_seed(0)
    weights = options.pop("weights", (1.0, 1.0, 1.0))
    tfs = {str(a): {"weight": w, "transform": Add(a)} for a, w in zip((1, 4, 16), weights, strict=True)}
    return ImageTransforms(**options, tfs=tfs)({"observation.image": BLACK})["observation.image"][:, 0, 0, 0, 0]


def test_exactly_so_many_are_applied_each_at_most_once():
    assert set(applied(max_num_transforms=2).tolist()) == {5, 17, 20}
    assert set(applied(max_num_transforms=9).tolist()) == {21}


def test_up_to_so_many_are_applied_evenly():
    sums = applied(max_num_transforms=2, exact=False)
    assert set(sums.tolist()) == {0, 1, 4, 16, 5, 17, 20}
    assert 100 < (sums == 0).sum() < 167  # a third of 400, within 3.5 deviations


def test_weights_are_chances():
    sums = applied(max_num_transforms=1, weights=(3.0, 1.0, 0.0))
    assert set(sums.tolist()) == {1, 4}
    assert 270 < (sums == 1).sum() < 330  # three quarters of 400, within 3.5 deviations


def test_one_draw_for_the_batch():
    assert len(set(applied(max_num_transforms=1, per_sample=False).tolist())) == 1


@pytest.mark.parametrize(("random_order", "results"), [(False, {2}), (True, {1, 2})])
def test_order(random_order, results):
    tfs = {"add": {"transform": Add(1)}, "twice": {"transform": Twice()}}
    changed = ImageTransforms(2, random_order=random_order, tfs=tfs)({"observation.image": BLACK})
    assert set(changed["observation.image"].flatten().tolist()) == results


def test_any_transform_of_torchvision():
    blur = {"blur": {"transform": v2.GaussianBlur(kernel_size=5)}}
    changed = ImageTransforms(1, tfs=blur)({"observation.image": images()})["observation.image"]
    assert changed.float().std() < images().float().std()


@pytest.mark.parametrize(
    ("transform", "words"),
    [(v2.CenterCrop(8), "keeps size and dtype"), (v2.ToDtype(torch.float32), "torch.float32")]
    + [(v2.RandomCrop(99), "does not take the images of observation.image")],
)
def test_what_does_not_keep_the_images_is_refused(transform, words):
    spec = Spec({"observation.image": Feature("VISUAL", (3, 16, 16))}, Feature("ACTION", (2,)), 10.0)
    ImageTransforms(**options()).check(spec)
    with pytest.raises(UserError, match=words):
        ImageTransforms(1, tfs={"mine": {"transform": transform}}).check(spec)


def test_the_five_are_those_of_torchvision():
    """Each of the five, alone, does what torchvision's function does with a factor from its range."""
    picture = images()[:1]
    functions = {
        "brightness": v2.functional.adjust_brightness,
        "contrast": v2.functional.adjust_contrast,
        "saturation": v2.functional.adjust_saturation,
        "hue": v2.functional.adjust_hue,
        "sharpness": v2.functional.adjust_sharpness,
    }
    for name, tf in options()["tfs"].items():
        low, high = tf["kwargs"][name]
        fixed = (low + 2 * high) / 3
        tfs = {name: {**tf, "kwargs": {name: [fixed, fixed]}}}
        changed = ImageTransforms(1, tfs=tfs)({"observation.image": picture})["observation.image"]
        # ColorJitter holds its factor as float32, which may round a pixel the other way.
        assert (changed[0].int() - functions[name](picture[0], fixed).int()).abs().max() <= 1, name
        assert not torch.equal(changed, picture), name
