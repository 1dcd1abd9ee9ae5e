"""The online phase: its rules, what it collects, and the process beside training."""

import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fakes import fake_env
from fakes.training import CPU, Line, metrics, saved, status, trainer

from robolearn.agent import AgentFactory
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.envs.factory import EnvFactory
from robolearn.episodes import RolloutInterrupted
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.rollouts.rollout_workers import RolloutResult
from robolearn.trainer import Trainer
from robolearn.training.online import Collector, Online
from robolearn.types import Feature, Spec, Window

SPEC = Spec({"observation.state": Feature("STATE", (2,))}, Feature("ACTION", (2,)), 10.0)
GIVEN: dict[str, Any] = {"steps": 8, "steps_between_rollouts": 2, "env_seed": 7, "buffer_capacity": 100}


def simulator(**kwargs: Any) -> EnvFactory:
    return EnvFactory(
        "fake_env/Reach-v0",
        10,
        12,
        {"state": "observation.state"},
        package="fakes.fake_env",
        obs_type="state",
        render_mode=None,
        kwargs=kwargs,
    )


class Explorer(Line):
    """Moves forwards by its bias, with noise when it explores; may learn from failures."""

    spec = replace(Line.spec, needs_reward=True)

    def act(self, observation, state, explore=False):
        chunk, state = super().act(observation, state)
        return chunk + explore * 0.1 * torch.randn(observation["observation.state"].shape), state


def moving(speed: float = 0.2, cls: type[Line] = Explorer) -> Line:
    """A policy that moves forwards at a speed."""
    policy = cls()
    torch.nn.init.zeros_(policy.line.weight)
    policy.line.bias.data = torch.tensor([speed, 0.0])
    return policy


def collector(folder: Path, policy: Policy, env: EnvFactory | None = None, **options: Any) -> Collector:
    make_agent = AgentFactory(Normalizer(SPEC, {}), CPU)
    return Online(**(GIVEN | options)).collector(env or simulator(), SPEC, folder, make_agent, policy, offline_steps=4)


def never() -> bool:
    return False


RULES = {
    "steps_between_rollouts": (None, r"online.steps_between_rollouts is missing"),
    "env_seed": (None, r"online.env_seed is missing: the seed"),
    "buffer_capacity": (None, r"online.buffer_capacity is missing"),
    "rollout_batch_size": (3, r"online.rollout_batch_size=3 is more than online.rollout_n_episodes=1"),
    "buffer_seed_size": (101, r"online.buffer_seed_size=101 frames will never be in a buffer"),
}


@pytest.mark.parametrize("option", RULES)
def test_rules_of_the_keys(option: str) -> None:
    value, message = RULES[option]
    with pytest.raises(UserError, match=message):
        Online(**(GIVEN | {option: value}))


def test_rules_between_phase_policy_and_simulator() -> None:
    env, line, explorer = simulator(), Line(), Explorer()
    Online(**GIVEN).check(explorer, env, 0)
    Online(**GIVEN).check(line, env, 0)
    Online(steps=0).check(line, None, 0)
    with pytest.raises(UserError, match=r"needs a simulator to collect in"):
        Online(**GIVEN).check(line, None, 0)
    with pytest.raises(UserError, match=r"online.keep=all: this policy imitates"):
        Online(**GIVEN, keep="all").check(line, env, 0)
    with pytest.raises(UserError, match=r"online.buffer_capacity=12 is less than one episode: it takes up to 13"):
        Online(**(GIVEN | {"buffer_capacity": 12})).check(line, env, 0)
    env.success_key = None
    with pytest.raises(UserError, match=r"does not say which episodes succeed"):
        Online(**GIVEN).check(line, env, 0)
    spec = Spec({"observation.image": Feature("VISUAL", (3, 96, 96))}, Feature("ACTION", (2,)), 10.0)
    with torch.device("meta"), pytest.raises(UserError, match=r"offline.steps=5 is less than the \d+ updates"):
        Online(**GIVEN).check(VqbetPolicy(spec, n_vqvae_training_steps=9), simulator(), 5)


def test_collects_when_it_is_time_with_seeds_of_their_own(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy, rollout_n_episodes=3, rollout_batch_size=2)
    scalars = {step: found.collect(step, never) for step in range(4, 9)}
    assert [step for step, told in scalars.items() if told] == [4, 6, 8]
    assert found.replay.next_index == 9
    assert [s.steps for s in found.replay.episodes] != [12] * 9
    assert scalars[8]["online/episodes"] == 9
    assert scalars[8]["online/env_steps"] == sum(s.steps for s in found.replay.episodes)
    # Episode i starts as the simulator does with seed env_seed + i.
    for number, episode in enumerate(found.replay.episodes):
        start = found.replay._ring["observation.state"][episode.first]
        env = fake_env.Reach(obs_type="state", render_mode=None)
        assert np.allclose(start, env.reset(seed=7 + number)[0], atol=1e-6)
    found.close()


def test_frames_have_the_task_that_the_policy_is_given(tmp_path: Path) -> None:
    """The dataset has several tasks, and the policy is given the last of them."""
    make_agent = AgentFactory(Normalizer(SPEC, {}), CPU)
    online = Online(**GIVEN)
    found = online.collector(simulator(), SPEC, tmp_path, make_agent, moving(), offline_steps=4, task_index=2)
    found.collect(4, never)
    assert set(found.replay.batch(torch.arange(3), Window())["task_index"].tolist()) == {2}
    found.close()


def test_exploration_draws_from_the_episodes_seed_alone(tmp_path: Path) -> None:
    rings = []
    for name in "ab":
        torch.manual_seed(ord(name))
        policy = moving()
        found = collector(tmp_path / name, policy)
        before = torch.get_rng_state()
        found.collect(4, never)
        assert torch.equal(torch.get_rng_state(), before)
        rings.append(found.replay._ring["action"].clone())
        found.close()
    assert torch.equal(*rings)
    assert rings[0][:3, 1].abs().min() > 0


def test_imitators_keep_what_succeeded(tmp_path: Path) -> None:
    policy = moving(speed=0.12, cls=Line)  # too slow for the far ones
    found = collector(tmp_path, policy, rollout_n_episodes=8, rollout_batch_size=8)
    told = found.collect(4, never)
    assert 0 < told["online/success_rate"] < 1
    assert found.replay.next_index == told["online/success_rate"] * 8
    assert told["online/kept"] == told["online/success_rate"]
    found.close()


def test_seeding_goes_on_until_the_buffer_holds_enough(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy, buffer_seed_size=60)
    found.collect(4, never)
    assert 60 <= found.replay.frames < 60 + 13
    found.close()


def test_seeding_does_not_wait_for_successes_that_do_not_come(tmp_path: Path) -> None:
    policy = moving(speed=0.0, cls=Line)
    found = collector(tmp_path, policy, buffer_seed_size=60)
    assert found.collect(4, never)["online/kept"] == 0
    assert found.episodes == 1
    found.close()


def test_an_interrupted_rollout_is_done_again(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy)
    with pytest.raises(RolloutInterrupted):
        found.collect(4, lambda: True)
    assert (found.episodes, found.replay.frames) == (0, 0)
    assert found.collect(4, never)
    assert not found.collect(4, never)
    found.close()


def test_a_state_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    policy = moving()
    whole = collector(tmp_path / "whole", policy)
    for step in (4, 6, 8):
        whole.collect(step, never)
    stopped = collector(tmp_path / "stopped", policy)
    stopped.collect(4, never)
    state = stopped.state_dict()
    stopped.collect(6, never)  # lost with the process
    again = collector(tmp_path / "stopped", policy)
    again.load_state_dict(state)
    for step in (6, 8):
        again.collect(step, never)
    assert again.replay.state_dict() == whole.replay.state_dict()
    assert all(torch.equal(ring, whole.replay._ring[key]) for key, ring in again.replay._ring.items())
    for made in (whole, stopped, again):
        made.close()


def test_files_stay_as_long_as_a_checkpoint_needs_them(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy, buffer_capacity=13)
    for step in (4, 6, 8):
        found.collect(step, never)
        found.state_dict()
        found.checkpointed(step, [step - 2, step])
    numbers = sorted(int(file.stem) for file in (tmp_path / "replay").glob("0*"))
    assert numbers == [1, 2]
    found.close()


def test_a_process_beside_training_gets_the_newest_weights(tmp_path: Path) -> None:
    policy = moving(speed=0.0)
    found = collector(tmp_path, policy, do_rollout_async=True, steps_between_rollouts=1)
    try:
        policy.line.bias.data[0] = 0.5
        assert found.collect(4, never) == {}  # it goes on meanwhile
        deadline = time.monotonic() + 200
        step, told = 5, {}
        while not told and time.monotonic() < deadline:
            policy.line.bias.data[0] = 0.0  # training goes on; the copy stays as it was
            told = found.collect(step, never)
            step += 1
        assert told["online/weights_age"] == step - 1 - 4
        actions = found.replay._ring["action"][: found.replay.episodes[0].steps, 0]
        assert abs(float(actions.mean()) - 0.5) < 0.15
    finally:
        found.close()


def wait(found: Collector) -> RolloutResult | None:
    found.rollouts.start(0, found.rollout_agent(), [1], never)
    return found.rollouts.get(wait=True, stop=never)


def test_an_error_beside_training_ends_it(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy, simulator(crash_in="step"), do_rollout_async=True)
    try:
        with pytest.raises(
            UserError, match=r"failed in step 4 of the episode with seed 1: RuntimeError: joint 3 broke"
        ):
            wait(found)
    finally:
        found.close()


def unfinished(folder: Path, **kwargs: Any) -> Trainer:
    """A run whose only rollout begins before its last update and takes longer."""
    policy = Explorer()
    found = collector(folder, policy, simulator(**kwargs), do_rollout_async=True)
    return trainer(folder, steps=5, policy=policy, collector=found)


def test_a_rollout_that_outlasts_the_last_update_is_waited_for(tmp_path: Path) -> None:
    made = unfinished(tmp_path, crash_in="slow")
    made.train()
    replay = cast(Collector, made.state.parts["collector"]).replay
    assert replay.next_index == 1
    told = metrics(tmp_path)
    assert [line["step"] for line in told] == [3, 5]  # a line a step, the last with what came in
    assert told[-1]["online/env_steps"] == replay.episodes[0].steps
    assert told[-1]["online/weights_age"] == 1


def test_its_error_is_the_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"RuntimeError: joint 3 broke"):
        unfinished(tmp_path, crash_in="step").train()
    assert status(tmp_path)["state"] == "failed"
    assert saved(tmp_path) == [4, 5]  # what was trained is kept


def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy, simulator(crash_in="slow"), do_rollout_async=True)
    assert found.finish(4, never) == {}
    found.collect(4, never)
    with pytest.raises(RolloutInterrupted):
        found.finish(5, lambda: True)
    assert found.finish(5, never)["online/episodes"] == 1
    found.close()


def test_the_death_of_the_process_beside_training_is_told(tmp_path: Path) -> None:
    policy = moving()
    found = collector(tmp_path, policy, simulator(crash_in="slow"), do_rollout_async=True)
    try:
        (process,) = [each for each in multiprocessing.active_children() if each.name == "rollout"]
        process.kill()
        with pytest.raises(UserError, match=r"The rollout process died \(exit code -9"):
            wait(found)
    finally:
        found.close()


def test_memory_is_taken_once(tmp_path: Path) -> None:
    """The ring's files have their size from the start, so that a full disk is told then."""
    replay = ReplayBuffer(tmp_path, SPEC, 1000, CPU)
    assert (tmp_path / "ring.observation.state").stat().st_blocks * 512 >= 1000 * 2 * 4
    assert replay.num_sampleable == 0
