"""Normalisation: its formulas, the way back of actions, and what it refuses."""

import pytest
import torch

from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.types import Feature, Spec, Stats

SPEC = Spec(
    {
        "observation.image": Feature("VISUAL", (3, 4, 4)),
        "observation.state": Feature("STATE", (2,)),
        "observation.environment_state": Feature("ENV", (3,)),
    },
    Feature("ACTION", (2,)),
    10.0,
)
MAPPING = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ENV": "IDENTITY", "ACTION": "MIN_MAX"}


def stats() -> Stats:
    image = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    vector = {"min": torch.tensor([0.0, -2.0]), "max": torch.tensor([4.0, 2.0])}
    vector |= {"mean": torch.tensor([1.0, 0.0]), "std": torch.tensor([2.0, 0.5])}
    return {
        "observation.image": image,
        "observation.state": dict(vector),
        "action": dict(vector),
    }


def test_min_max_maps_the_range_to_minus_one_and_one() -> None:
    state = torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])
    encoded = Normalizer(SPEC, MAPPING, stats()).encode({"observation.state": state})
    torch.testing.assert_close(encoded["observation.state"], torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]]))


def test_mean_std_centres_and_scales() -> None:
    normalizer = Normalizer(SPEC, {**MAPPING, "STATE": "MEAN_STD"}, stats())
    encoded = normalizer.encode({"observation.state": torch.tensor([[[3.0, 1.0]]])})
    torch.testing.assert_close(encoded["observation.state"], torch.tensor([[[1.0, 2.0]]]))


def test_a_constant_feature_stays_finite() -> None:
    constant = stats()
    constant["observation.state"]["max"] = constant["observation.state"]["min"].clone()
    encoded = Normalizer(SPEC, MAPPING, constant).encode({"observation.state": torch.tensor([[[0.0, -2.0]]])})
    torch.testing.assert_close(encoded["observation.state"], torch.tensor([[[-1.0, -1.0]]]))


def test_uint8_images_become_floats_in_0_1_and_then_normalised() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(1, 2, 3, 4, 4)
    encoded = Normalizer(SPEC, MAPPING, stats()).encode({"observation.image": images})["observation.image"]
    assert encoded.dtype == torch.float32
    torch.testing.assert_close(encoded[0, :, 0, 0, 0], torch.tensor([-2.0, 2.0]))


def test_images_are_floats_also_without_statistics() -> None:
    images = torch.full((1, 1, 3, 4, 4), 255, dtype=torch.uint8)
    encoded = Normalizer(SPEC, {}, None).encode({"observation.image": images})["observation.image"]
    torch.testing.assert_close(encoded, torch.ones(1, 1, 3, 4, 4))


def test_kinds_named_nowhere_and_identity_pass_through() -> None:
    normalizer = Normalizer(SPEC, {"ENV": "IDENTITY"}, stats())
    batch = {"observation.environment_state": torch.rand(2, 1, 3), "action": torch.rand(2, 1, 2)}
    for key, value in normalizer.encode(batch).items():
        assert value is batch[key]
    assert not list(normalizer.buffers())


def test_other_keys_pass_through() -> None:
    batch = {"action_is_pad": torch.zeros(2, 1, dtype=torch.bool), "index": torch.arange(2)}
    encoded = Normalizer(SPEC, MAPPING, stats()).encode(batch)
    assert all(encoded[key] is batch[key] for key in batch)


def test_the_given_batch_is_not_changed() -> None:
    batch = {"action": torch.rand(2, 3, 2), "observation.image": torch.zeros(2, 1, 3, 4, 4, dtype=torch.uint8)}
    before = {key: value.clone() for key, value in batch.items()}
    Normalizer(SPEC, MAPPING, stats()).encode(batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in batch)


@pytest.mark.parametrize("mode", ["MIN_MAX", "MEAN_STD", "IDENTITY"])
def test_decode_action_undoes_encode(mode: str) -> None:
    normalizer = Normalizer(SPEC, {"ACTION": mode}, stats())
    action = torch.randn(2, 5, 2)
    torch.testing.assert_close(normalizer.decode_action(normalizer.encode({"action": action})["action"]), action)


def test_statistics_travel_with_the_weights() -> None:
    empty = Normalizer(SPEC, MAPPING)
    empty.load_state_dict(Normalizer(SPEC, MAPPING, stats()).state_dict())
    torch.testing.assert_close(empty.decode_action(torch.ones(1, 1, 2)), torch.tensor([[[4.0, 2.0]]]))


def test_statistics_are_copied() -> None:
    given = stats()
    normalizer = Normalizer(SPEC, MAPPING, given)
    given["action"]["max"].zero_()
    torch.testing.assert_close(normalizer.decode_action(torch.ones(1, 1, 2)), torch.tensor([[[4.0, 2.0]]]))


def test_a_missing_statistic_is_refused() -> None:
    given = stats()
    del given["action"]["max"]
    with pytest.raises(UserError, match=r"no 'max' of action, which MIN_MAX needs.*policy.normalization_mapping"):
        Normalizer(SPEC, MAPPING, given)


def test_a_key_without_statistics_is_refused() -> None:
    with pytest.raises(UserError, match=r"no 'min' of observation.environment_state"):
        Normalizer(SPEC, {**MAPPING, "ENV": "MIN_MAX"}, stats())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_statistic_that_is_not_finite_is_refused(value: float) -> None:
    given = stats()
    given["observation.image"]["std"][1] = value
    with pytest.raises(UserError, match=r"'std' of observation.image is not finite"):
        Normalizer(SPEC, MAPPING, given)


def test_a_statistic_of_another_shape_is_refused() -> None:
    given = stats()
    given["observation.image"]["mean"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"'mean' of observation.image has shape \(3,\).*\(3, 1, 1\)"):
        Normalizer(SPEC, MAPPING, given)
