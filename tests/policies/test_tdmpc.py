"""TD-MPC: what its constructor refuses, its loss, its target model, augmentation and planning."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from fakes.policy import ACTION_DIM, batch, spec
from fakes.tdmpc import CHUNK, SIZES, reward_batch, tdmpc

from robolearn.agent import Agent
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.tdmpc import planner
from robolearn.policies.tdmpc.planner import min_of_random_pair
from robolearn.policies.tdmpc.tdmpc import TdmpcPolicy, shift_images
from robolearn.types import Batch, Feature, Spec, Window

KEYPOINTS = spec(environment=True)


def observed(policy: TdmpcPolicy, of: Spec) -> Batch:
    """The newest frame, as the agent gives it."""
    return {key: batch(policy, of)[key][:, :1] for key in of.observation}


REFUSED = [
    ({"n_obs_steps": 2}, "policy.n_obs_steps"),
    (
        {"normalization_mapping": {"ACTION": "MEAN_STD"}},
        "policy.normalization_mapping.ACTION",
    ),
    ({"normalization_mapping": {"STATE": "MIN_MAX"}}, "policy.normalization_mapping.ACTION"),
    ({"n_action_steps": 2}, "policy.n_action_steps"),
    ({**CHUNK, "use_mpc": False}, "policy.n_action_steps"),
    ({"n_action_repeats": 1, "n_action_steps": 5}, "policy.n_action_steps"),
    ({"q_ensemble_size": 1}, "policy.q_ensemble_size"),
    ({"n_elites": 14}, "policy.n_elites"),
    ({"min_std": 3.0}, "policy.min_std"),
]


@pytest.mark.parametrize(("options", "key"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refuses(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        TdmpcPolicy(KEYPOINTS, **(SIZES | options))
    assert caught.value.key == key


def image(height: int, width: int) -> Spec:
    return Spec({"observation.image": Feature("VISUAL", (3, height, width))}, Feature("ACTION", (2,)), 10.0)


UNFIT = [
    (spec(cameras=2), "dataset.exclude"),
    (image(72, 96), "observation.image"),
    (image(38, 38), "observation.image"),
    (Spec({}, Feature("ACTION", (2,)), 10.0), "policy"),
]


@pytest.mark.parametrize(("of", "key"), UNFIT, ids=[message for _, message in UNFIT])
def test_refuses_what_it_cannot_see(of: Spec, key: str) -> None:
    with pytest.raises(UserError) as caught:
        TdmpcPolicy(of, **SIZES)
    assert caught.value.key == key


def test_refuses_a_dataset_without_rewards() -> None:
    policy = tdmpc(KEYPOINTS)
    with pytest.raises(UserError, match=r"the dataset has no next.reward"):
        policy.loss({key: value for key, value in reward_batch(policy, KEYPOINTS).items() if key != "next.reward"})


def test_window_looks_ahead() -> None:
    window = Window(observation=(0, 1, 2, 3, 4), action=(0, 1, 2, 3), reward=(0, 1, 2, 3))
    assert tdmpc(KEYPOINTS).spec.window == window


SPECS = {
    "camera": spec(cameras=1, state=False),
    "camera and state": spec(cameras=1),
    "everything": spec(cameras=1, environment=True),
    "environment state": spec(state=False, environment=True),
    "state alone": spec(),
}
OPTIONS = [
    {},
    {"use_mpc": False},
    CHUNK,
    {"q_ensemble_size": 2},
    {"q_ensemble_size": 1, "uncertainty_regularizer_coeff": 0.0},
    {"n_pi_samples": 0},
    {"q_draws_with_replacement": True},
    {"horizon": 1},
]


@pytest.mark.parametrize("of", SPECS.values(), ids=SPECS)
def test_learns_and_acts_from(of: Spec) -> None:
    learns_and_acts(tdmpc(of), of)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_learns_and_acts_with(options: dict[str, Any]) -> None:
    learns_and_acts(tdmpc(KEYPOINTS, **options), KEYPOINTS)


def learns_and_acts(policy: TdmpcPolicy, of: Spec) -> None:
    loss, _ = policy.loss(reward_batch(policy, of) | {"task_index": torch.zeros(3)})
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in policy.model.parameters())
    assert all(p.grad is None for p in policy.target.parameters())
    with torch.inference_mode():
        actions = policy.eval().act(observed(policy, of), {})[0]
    assert actions.shape[0] == 3
    assert actions.shape[1] >= policy.spec.n_action_steps
    assert actions.shape[2] == ACTION_DIM
    assert actions.isfinite().all()
    assert actions.abs().max() <= 1


def test_computes_in_bfloat16() -> None:
    policy = tdmpc(spec(cameras=1))
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = policy.loss(reward_batch(policy, spec(cameras=1)))
        actions = policy.act(observed(policy, spec(cameras=1)), {})[0]
    assert loss.isfinite()
    assert actions.isfinite().all()


def test_a_fresh_model_expects_nothing() -> None:
    model = TdmpcPolicy(KEYPOINTS, **SIZES).model
    latent, action = torch.rand(5, 6), torch.rand(5, ACTION_DIM)
    assert model.step(latent, action)[1].abs().max() == 0
    assert model.action_values(latent, action).abs().max() == 0


def test_padding_does_not_count() -> None:
    policy = tdmpc(KEYPOINTS)
    batches = reward_batch(policy, KEYPOINTS)
    changed = {key: value.clone() for key, value in batches.items()}
    for key in ("observation.state", "action", "next.reward"):
        changed[key][0, -3:] += 1
    losses = []
    for one in (batches, changed):
        torch.manual_seed(1)
        losses.append(policy.loss(one)[0])
    torch.testing.assert_close(losses[0], losses[1])


def test_the_loss_is_the_weighted_sum_of_its_parts() -> None:
    policy = tdmpc(KEYPOINTS, reward_coeff=2.0, value_coeff=3.0, consistency_coeff=5.0, pi_coeff=7.0)
    loss, parts = policy.loss(reward_batch(policy, KEYPOINTS))
    values = 3 * (parts["Q_value_loss"] + parts["V_value_loss"])
    expected = 5 * parts["consistency_loss"] + 2 * parts["reward_loss"] + values + 7 * parts["pi_loss"]
    torch.testing.assert_close(loss.detach(), expected)


def test_the_target_moves_by_its_momentum() -> None:
    policy = tdmpc(KEYPOINTS, target_model_momentum=0.75)
    before = {name: value.clone() for name, value in policy.target.named_parameters()}
    policy.after_step()
    weights = dict(policy.model.named_parameters())
    for name, value in policy.target.named_parameters():
        torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * weights[name].detach())


# Augmentation


def test_images_are_shifted_by_whole_pixels_each_on_its_own() -> None:
    images = torch.rand(2, 32, 3, 20, 20)
    shifted = shift_images(images, 0.1)
    padded = torch.nn.functional.pad(images.flatten(0, 1), (2, 2, 2, 2), mode="replicate")
    seen = set()
    for one, source in zip(shifted.flatten(0, 1), padded, strict=True):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(one, source[:, y : y + 20, x : x + 20])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 15


def test_no_shift_leaves_images_as_they_are() -> None:
    images = torch.rand(2, 3, 20, 20)
    assert shift_images(images, 0.0) is images


# Planning


@contextmanager
def drawing(monkeypatch: pytest.MonkeyPatch, of: Callable[[str, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While open, every draw of torch passes through a function of its name and value."""
    with monkeypatch.context() as patch:
        for module, name in ((torch, "randn"), (torch, "randn_like"), (torch, "rand"), (planner, "sample")):
            original = getattr(module, name)
            wrapped = lambda *a, _name=name, _original=original, **k: of(_name, _original(*a, **k))  # noqa: E731
            patch.setattr(module, name, wrapped)
        yield


def test_many_plans_at_once_are_those_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tdmpc(KEYPOINTS).eval()
    seen = observed(policy, KEYPOINTS)
    mean = torch.rand(4, 3, ACTION_DIM) - 0.5
    draws: list[tuple[str, torch.Tensor]] = []
    with drawing(monkeypatch, lambda name, value: draws.append((name, value)) or value), torch.no_grad():
        chunk, means = policy.plan(seen, mean)

    def of_one(i: int) -> Callable[[str, torch.Tensor], torch.Tensor]:
        recorded = iter(draws)

        def draw(name: str, value: torch.Tensor) -> torch.Tensor:
            found, all_values = next(recorded)
            assert found == name
            if name == "rand":  # which heads are asked is the same for all
                return all_values
            return all_values[i : i + 1] if name == "sample" else all_values[..., i : i + 1, :]

        return draw

    assert means is not None
    for i in range(3):
        with drawing(monkeypatch, of_one(i)), torch.no_grad():
            alone, mean_alone = policy.plan({key: value[i : i + 1] for key, value in seen.items()}, mean[:, i : i + 1])
        assert mean_alone is not None
        torch.testing.assert_close(alone[0], chunk[i])
        torch.testing.assert_close(mean_alone[:, 0], means[:, i])


def test_planning_finds_actions_of_high_reward() -> None:
    policy = tdmpc(KEYPOINTS, cem_iterations=8, n_gaussian_samples=300, n_elites=20, uncertainty_regularizer_coeff=0.0)
    goal = torch.tensor([0.3, -0.6])
    policy.model.step = lambda latent, action: (latent, -100 * (action - goal).square().sum(-1))  # pyright: ignore
    with torch.no_grad():
        chunk = policy.eval().act(observed(policy, KEYPOINTS), {})[0]
    assert (chunk[:, 0] - goal).abs().max() < 0.2


@pytest.mark.parametrize(("options", "shift"), [(CHUNK, 3), (CHUNK | {"warm_start_shift": 1}, 1), ({}, 2)])
def test_the_next_search_starts_where_the_last_one_ended(options: dict[str, Any], shift: int) -> None:
    policy = tdmpc(KEYPOINTS, **options).eval()
    seen = observed(policy, KEYPOINTS)
    latent = policy.model.encode({key: value[:, -1] for key, value in seen.items()})
    assert policy.planner is not None
    with torch.no_grad():
        torch.manual_seed(2)
        _, last = policy.planner(policy.model, latent)
        torch.manual_seed(2)
        _, mean = policy.plan(seen)
    assert mean is not None
    assert torch.equal(mean[: 4 - shift], last[shift:])
    assert mean[4 - shift :].abs().max() == 0


def agent_of(policy: TdmpcPolicy) -> Agent:
    limits = {"min": torch.full((ACTION_DIM,), -1.0), "max": torch.full((ACTION_DIM,), 1.0)}
    normalizer = Normalizer(KEYPOINTS, policy.spec.normalization_mapping, {"action": limits})
    return Agent(policy.eval(), normalizer, torch.device("cpu"))


def test_agents_share_no_state_and_drop_it_at_a_reset() -> None:
    policy = tdmpc(KEYPOINTS)
    seen = {key: value[:, -1].numpy() for key, value in observed(policy, KEYPOINTS).items()}

    def steps(agent: Agent) -> list[np.ndarray]:
        torch.manual_seed(4)
        return [agent(seen) for _ in range(5)]

    first, other = agent_of(policy), agent_of(policy)
    alone = steps(first)
    assert all(np.array_equal(a, b) for a, b in zip(steps(other), alone, strict=True))
    continued = steps(first)
    first.reset()
    assert all(np.array_equal(a, b) for a, b in zip(steps(first), alone, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(continued, alone, strict=True))


def test_the_first_action_is_repeated() -> None:
    policy = tdmpc(KEYPOINTS, n_action_repeats=3)
    agent = agent_of(policy)
    seen = {key: value[:, -1].numpy() for key, value in observed(policy, KEYPOINTS).items()}
    actions = [agent(seen) for _ in range(4)]
    assert np.array_equal(actions[0], actions[1])
    assert np.array_equal(actions[0], actions[2])
    assert not np.array_equal(actions[0], actions[3])


@pytest.mark.parametrize("replacement", [True, False])
def test_minima_are_of_two_heads(replacement: bool) -> None:
    values = torch.arange(3.0).unsqueeze(1)
    torch.manual_seed(0)
    found = {min_of_random_pair(values, replacement).item() for _ in range(100)}
    # The highest of three is the lower of two only where it is drawn twice.
    assert found == ({0.0, 1.0, 2.0} if replacement else {0.0, 1.0})
    assert min_of_random_pair(values[1:], replacement).item() == 1.0
