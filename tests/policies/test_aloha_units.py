"""Aloha's units and those of pi0, there and back, and what the statistics are of."""

import math

import numpy as np
import pytest
import torch
from fakes.pi0 import make_spec

from robolearn.normalize import Normalizer
from robolearn.policies.pi0.aloha_units import AlohaUnits
from robolearn.types import Batch, Window

SPEC = make_spec(dim=14)
MODES = [(True, False), (False, True), (True, True)]


def make_batch(size: int = 3, chunk: int = 5) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.state": torch.rand(size, 1, 14, generator=generator),
        "action": torch.rand(size, chunk, 14, generator=generator),
    }


@pytest.mark.parametrize(("to_pi", "delta"), MODES)
def test_actions_come_back(to_pi: bool, delta: bool) -> None:
    batch = make_batch()
    before = {key: value.clone() for key, value in batch.items()}
    units = AlohaUnits(SPEC, to_pi, delta)
    there = units.encode(batch)
    assert all(torch.equal(batch[key], before[key]) for key in before)
    assert not torch.allclose(there["action"], batch["action"])
    torch.testing.assert_close(units.decode(there["action"], batch), batch["action"], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("to_pi", "delta"), MODES)
def test_actions_come_back_through_the_normaliser(to_pi: bool, delta: bool) -> None:
    batch = make_batch()
    stats = {key: {"mean": torch.full((14,), 0.3), "std": torch.full((14,), 2.0)} for key in batch}
    modes = {"STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    normalizer = Normalizer(SPEC, modes, stats, transform=AlohaUnits(SPEC, to_pi, delta))  # type: ignore[arg-type]
    encoded = normalizer.encode(batch)
    torch.testing.assert_close(normalizer.decode_action(encoded["action"], batch), batch["action"])


def test_joints_are_differences_and_grippers_are_not() -> None:
    batch = make_batch()
    action = AlohaUnits(SPEC, to_pi0_units=False, delta=True).encode(batch)["action"]
    for number in range(14):
        base = 0 if number in (6, 13) else batch["observation.state"][:, :, number]
        torch.testing.assert_close(action[..., number], batch["action"][..., number] - base)


def test_some_joints_turn_the_other_way() -> None:
    batch = make_batch()
    there = AlohaUnits(SPEC, to_pi0_units=True, delta=False).encode(batch)
    for key in batch:
        for number in range(14):
            sign = -1 if number in (1, 2, 8, 9) else 1
            same = torch.equal(there[key][..., number], sign * batch[key][..., number])
            assert same == (number not in (6, 13)), (key, number)


def test_a_gripper_by_hand() -> None:
    batch = make_batch()
    batch["observation.state"][..., 6] = 0.5
    batch["action"][..., 13] = 0.25
    there = AlohaUnits(SPEC, to_pi0_units=True, delta=False).encode(batch)
    # Half of the fingers' way is 38.22 mm from the centre: the triangle of horn, arm and way gives the angle.
    way, horn, arm = 0.03822, 0.022, 0.036
    angle = math.asin((horn**2 + way**2 - arm**2) / (2 * horn * way))
    assert there["observation.state"][0, 0, 6].item() == pytest.approx((angle - 0.4) / 1.1, abs=1e-5)
    leader = 0.25 * (1.4910 + 0.6213) - 0.6213
    assert there["action"][0, 0, 13].item() == pytest.approx((leader - 0.4) / 1.1, abs=1e-5)


class Frames:
    """Two episodes of four frames, in memory."""

    num_frames = 8

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.state = torch.from_numpy(rng.uniform(0, 1, (8, 14)).astype(np.float32))
        self.action = torch.from_numpy(rng.uniform(0, 1, (8, 14)).astype(np.float32))

    def batch(self, indices: torch.Tensor, window: Window, *, keys=None) -> Batch:
        wanted = indices[:, None] + torch.tensor(window.action)
        last = (indices // 4 * 4 + 3)[:, None]
        return {
            "observation.state": self.state[indices][:, None],
            "observation.state_is_pad": torch.zeros(len(indices), 1, dtype=torch.bool),
            "action": self.action[wanted.minimum(last)],
            "action_is_pad": wanted > last,
        }


def test_statistics_are_of_the_converted_units() -> None:
    frames, window = Frames(), Window(action=(0, 1, 2))
    own = {"action": {"mean": torch.zeros(14), "q01": torch.ones(14)}, "observation.image": {}}
    stats = AlohaUnits(SPEC, to_pi0_units=False, delta=True).compute_stats(frames, window, own)
    rows = []
    for t in range(8):
        for step in range(3):
            if (t + step) // 4 == t // 4:
                base = frames.state[t].clone()
                base[[6, 13]] = 0
                rows.append(frames.action[t + step] - base)
    actions = torch.stack(rows)
    torch.testing.assert_close(stats["action"]["mean"], actions.mean(0))
    torch.testing.assert_close(stats["action"]["std"], actions.std(0, unbiased=False))
    torch.testing.assert_close(stats["action"]["min"], actions.amin(0))
    torch.testing.assert_close(stats["action"]["max"], actions.amax(0))
    torch.testing.assert_close(stats["observation.state"]["mean"], frames.state.mean(0))
    assert stats["observation.image"] == {}
    assert (own["action"]["mean"] == 0).all()


def test_statistics_of_the_datasets_own_units_by_a_key() -> None:
    own = {"action": {"mean": torch.zeros(14)}}
    units = AlohaUnits(SPEC, to_pi0_units=True, delta=False, convert_stats=False)
    assert units.compute_stats(Frames(), Window(), own) is own
