"""Samples seen in a mirror."""

import numpy as np
import pytest
import torch

from robolearn.data.reflection import AntidiagonalReflection
from robolearn.envs import PushT
from robolearn.errors import UserError
from robolearn.types import Feature, Spec


def mirrored(state: np.ndarray) -> np.ndarray:
    """Of PushT: agent xy, block xy, block's angle."""
    x, y, block_x, block_y, angle = state
    return np.array([512 - y, 512 - x, 512 - block_y, 512 - block_x, np.pi / 2 - angle])


@pytest.mark.pusht
def test_pusht_goes_on_in_the_mirror_as_beside_it() -> None:
    state = np.array([120.0, 300.0, 200.0, 260.0, 0.4])
    env = PushT().make_vec(1).envs[0]  # type: ignore[union-attr]
    actions = np.array([[150.0, 290.0], [190.0, 280.0], [230.0, 260.0], [260.0, 240.0]], np.float32)

    def episode(start: np.ndarray, actions: np.ndarray) -> dict[str, torch.Tensor]:
        seen = [env.reset(seed=0, options={"reset_to_state": start})[0]]
        seen += [env.step(action)[0] for action in actions]
        seen = [env.get_wrapper_attr("observation")(each) if "pixels" in each else each for each in seen]
        return {key: torch.from_numpy(np.stack([each[key] for each in seen]))[None] for key in seen[0]}

    here, there = episode(state, actions), episode(mirrored(state), 512 - actions[:, ::-1])
    index = torch.zeros(1, dtype=torch.int64)
    batch = {**here, "action": torch.from_numpy(actions)[None], "index": index}
    changed = AntidiagonalReflection(probability=1.0)(batch)
    torch.testing.assert_close(changed["action"][0].numpy(), 512 - actions[:, ::-1])
    torch.testing.assert_close(changed["observation.state"], there["observation.state"], atol=0.05, rtol=0)
    # Edges are drawn a pixel of the screen off; unmirrored, every tenth value is another.
    differs = (changed["observation.image"].int() - there["observation.image"].int()).abs() > 64
    before = (here["observation.image"].int() - there["observation.image"].int()).abs() > 64
    assert differs.float().mean() < 0.1 * before.float().mean()


def test_a_sample_changes_as_a_whole_and_twice_is_as_it_was() -> None:
    torch.manual_seed(0)
    batch = {
        "index": torch.arange(64),
        "observation.state": torch.rand(64, 2, 2) * 512,
        "action": torch.rand(64, 16, 2) * 512,
        "observation.image": torch.randint(0, 256, (64, 2, 3, 8, 8), dtype=torch.uint8),
        "action_is_pad": torch.zeros(64, 16, dtype=torch.bool),
    }
    changed = AntidiagonalReflection()(batch)
    keys = ("observation.state", "action", "observation.image")
    moved = [(changed[key] != batch[key]).flatten(1).any(1) for key in keys]
    assert 16 < moved[0].sum() < 48
    assert all(torch.equal(moved[0], each) for each in moved)
    assert changed["action_is_pad"] is batch["action_is_pad"]
    always = AntidiagonalReflection(probability=1.0)
    for key in keys:
        torch.testing.assert_close(always(always(batch))[key], batch[key])


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"observation.state": Feature("STATE", (3,))}, "image_transforms.positions"),
        ({"observation.environment_state": Feature("ENV", (16,))}, "image_transforms"),
        ({"observation.image": Feature("VISUAL", (3, 96, 84))}, "image_transforms"),
    ],
)
def test_refuses_what_it_would_only_half_mirror(changed: dict[str, Feature], key: str) -> None:
    observation = {"observation.state": Feature("STATE", (2,)), "observation.image": Feature("VISUAL", (3, 96, 96))}
    AntidiagonalReflection().check(Spec(observation, Feature("ACTION", (2,)), 10.0))
    with pytest.raises(UserError) as caught:
        AntidiagonalReflection().check(Spec(observation | changed, Feature("ACTION", (2,)), 10.0))
    assert caught.value.key == key
