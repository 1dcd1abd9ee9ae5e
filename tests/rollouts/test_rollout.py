import numpy as np
import pytest
import torch
from fakes import fake_env
from fakes.errors import message
from fakes.fake_env import reach_env

from robolearn.agent import Agent
from robolearn.envs import PushT
from robolearn.episodes import Episode, RolloutInterrupted
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy, PolicySpec
from robolearn.rollouts.rollout import rollout
from robolearn.types import Feature, Spec, Window


def run(simulator, seeds, batch_size=None, use_async=False, agent=None, **options) -> list[Episode]:
    env = simulator.make_vec(batch_size or len(seeds), use_async)
    try:
        return rollout(env, agent or fake_env.Forward(), seeds, **options)
    finally:
        env.close()


def same(one: Episode, other: Episode) -> None:
    for name in ("seed", "success", "terminated", "truncated"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("actions", "rewards", "successes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("use_async", [False, True])
def test_an_episode_does_not_depend_on_its_neighbours(use_async):
    seeds = [3, 4, 5, 6]
    alone = [run(reach_env(), [seed])[0] for seed in seeds]
    assert len({len(episode) for episode in alone}) > 1
    for one, other in zip(alone, run(reach_env(), seeds, use_async=use_async), strict=True):
        same(one, other)


def test_success_counts_at_the_terminal_step_and_nothing_counts_after_it():
    for episode in run(reach_env(episode_length=50), range(6)):
        assert episode.success
        assert (episode.terminated, episode.truncated) == (True, False)
        assert episode.successes.tolist() == [False] * (len(episode) - 1) + [True]
        assert episode.rewards[-1] > 1
        assert episode.rewards[-1] == episode.rewards.max()
        assert (episode.rewards[:-1] <= 1).all()
        assert episode.actions.shape == (len(episode), 2)


def test_an_episode_cut_off_in_time_is_a_failure():
    (episode,) = run(reach_env(episode_length=3), [0], agent=fake_env.Forward(0.01))
    assert (len(episode), episode.success, episode.terminated, episode.truncated) == (3, False, False, True)


def test_a_success_that_ends_nothing_counts_all_the_same():
    simulator = reach_env(episode_length=30)
    simulator.kwargs["ends"] = False
    (episode,) = run(simulator, [0])
    assert (len(episode), episode.success, episode.truncated) == (30, True, True)
    assert (run(reach_env(episode_length=3, success_key=None), [0]))[0].success is None


def test_finished_simulators_are_not_stepped():
    env = reach_env(episode_length=50).make_vec(3)
    episodes = rollout(env, fake_env.Forward(), [0, 1, 2])
    assert env.get_attr("steps_taken") == tuple(len(episode) for episode in episodes)
    rollout(env, fake_env.Forward(), [0])
    assert env.get_attr("steps_taken") == (2 * len(episodes[0]), len(episodes[1]), len(episodes[2]))
    env.close()


def test_fewer_seeds_than_simulators():
    one, other = run(reach_env(), [8])[0], run(reach_env(), [8], batch_size=3)
    assert len(other) == 1
    same(one, other[0])


@pytest.mark.parametrize("use_async", [False, True])
def test_observations_are_kept_with_the_last_one(use_async):
    episodes = run(reach_env(episode_length=50), [0, 1, 2], use_async=use_async, keep_observations=True)
    for episode in episodes:
        states = episode.observations["observation.state"]
        assert states.shape == (len(episode) + 1, 2)
        assert episode.observations["observation.images.top"].shape == (len(episode) + 1, 3, 6, 8)
        np.testing.assert_allclose(states[1:], states[:-1] + episode.actions, rtol=1e-5)
        np.testing.assert_allclose(states[1:, 0], episode.rewards, rtol=1e-5)


@pytest.mark.parametrize("use_async", [False, True])
def test_frames_of_the_chosen_episodes_only(use_async):
    frames: dict[int, list] = {0: [], 2: []}
    film = {place: taken.append for place, taken in frames.items()}
    episodes = run(reach_env(episode_length=50), [0, 1, 2], use_async=use_async, record_video=film)
    for place, taken in frames.items():
        assert len(taken) == len(episodes[place]) + 1
        assert taken[-1][0, 0, 0] == int(np.clip(episodes[place].rewards[-1] * 100 + 100, 0, 255))


def test_a_rollout_can_be_stopped():
    answers = iter([False, False, True])
    with pytest.raises(RolloutInterrupted):
        run(reach_env(), [0], stop=lambda: next(answers))


def test_what_has_ended_is_told_once():
    told: list = []
    run(reach_env(episode_length=50), range(4), on_step=told.extend)
    assert told == [True] * 4


@pytest.mark.parametrize("use_async", [False, True])
def test_a_crash_in_the_middle_names_the_seed(use_async):
    text = message(lambda: run(reach_env(crash_in="step"), [11, 12], use_async=use_async))
    assert "fake_env/Reach-v0 failed in step 4 of the episode with seed 1" in text


def test_a_process_that_dies_is_named_as_that():
    text = message(lambda: run(reach_env(crash_in="die"), [11, 12], use_async=True))
    assert "seeds 11 to 12" in text
    assert "eval.use_async_envs=false" in text


def test_actions_that_can_not_be_are_refused():
    class Broken(fake_env.Forward):
        def __call__(self, observation):
            return super().__call__(observation) * np.nan

    class Wide(fake_env.Forward):
        def __call__(self, observation):
            return np.zeros((len(observation["observation.state"]), 3))

    assert "not finite" in message(lambda: run(reach_env(), [0], agent=Broken()))
    assert "(3,)" in message(lambda: run(reach_env(), [0], agent=Wide()))


@pytest.mark.pusht
def test_pusht_is_repeatable_and_deterministic_across_batches():
    simulator = PushT(obs_type="environment_state_agent_pos", episode_length=20)

    class Push(fake_env.Forward):
        def __call__(self, observation):
            keypoints = observation["observation.environment_state"].reshape(-1, 8, 2)
            return keypoints.mean(axis=1)

    together = run(simulator, [0, 1, 2], agent=Push())
    for one, other in zip(together, [run(simulator, [seed], agent=Push())[0] for seed in (0, 1, 2)], strict=True):
        same(one, other)


# The agent

SPEC = Spec(
    {"observation.state": Feature("STATE", (2,)), "observation.images.top": Feature("VISUAL", (3, 6, 8))},
    Feature("ACTION", (2,)),
    10,
)


class Echo(Policy):
    """Predicts the observed states, oldest first, as actions, and remembers what it saw."""

    def __init__(self, offsets=(-2, -1, 0), n_action_steps=2) -> None:
        super().__init__()
        self.spec = PolicySpec(Window(observation=offsets), n_action_steps, {})
        self.seen: list = []

    def loss(self, batch):
        raise NotImplementedError

    def act(self, observation, state, explore=False):
        self.seen.append({key: value.clone() for key, value in observation.items()})
        return observation["observation.state"], {}


def agent(policy: Policy, amp_dtype=None) -> Agent:
    return Agent(policy, Normalizer(SPEC, {}), torch.device("cpu"), amp_dtype)


def seen_at(t: int, n: int = 2) -> dict[str, np.ndarray]:
    state = np.stack([np.full(2, 10 * i + t) for i in range(n)]).astype(np.float32)
    return {"observation.state": state, "observation.images.top": np.full((n, 3, 6, 8), 255, np.uint8)}


def test_the_first_observation_is_repeated_and_chunks_are_used_up():
    policy = Echo()
    acting = agent(policy)
    acting.reset()
    actions = [acting(seen_at(t)) for t in range(4)]
    states = [seen["observation.state"][0, :, 0].tolist() for seen in policy.seen]
    assert states == [[0, 0, 0], [0, 1, 2]]
    assert [action[0, 0] for action in actions] == [0, 0, 0, 1]
    assert actions[0].shape == (2, 2)
    assert actions[0].dtype == np.float32
    assert policy.seen[0]["observation.images.top"].dtype == torch.float32
    assert policy.seen[0]["observation.images.top"].max() == 1


def test_a_reset_forgets_history_and_queue():
    policy = Echo()
    acting = agent(policy)
    acting(seen_at(5))
    acting.reset()
    acting(seen_at(7))
    assert policy.seen[-1]["observation.state"][0, :, 0].tolist() == [7, 7, 7]


def test_a_window_with_gaps_or_with_a_future():
    policy = Echo(offsets=(-3, 0), n_action_steps=1)
    acting = agent(policy)
    for t in range(5):
        acting(seen_at(t))
    assert policy.seen[-1]["observation.state"][0, :, 0].tolist() == [1, 4]
    policy = Echo(offsets=(0, 1, 2), n_action_steps=1)
    acting = agent(policy)
    acting(seen_at(3))
    assert policy.seen[-1]["observation.state"][0, :, 0].tolist() == [3]


def test_an_agent_acts_without_gradients_and_leaves_float32():
    class Linear(Echo):
        def __init__(self):
            super().__init__(offsets=(0,), n_action_steps=1)
            self.layer = torch.nn.Linear(2, 2)

        def act(self, observation, state, explore=False):
            action = self.layer(observation["observation.state"])
            assert not action.requires_grad
            assert action.dtype == torch.bfloat16
            return action, {}

    assert agent(Linear(), torch.bfloat16)(seen_at(0)).dtype == np.float32
