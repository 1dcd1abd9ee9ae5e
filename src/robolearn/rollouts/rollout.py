"""Episodes of an agent in a vector of simulators, for evaluation and for collecting data alike."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from robolearn.envs.vector import VectorEnv
from robolearn.episodes import Actor, Episode, FrameSink, Observation, RolloutInterrupted
from robolearn.errors import UserError


class _StepRecorder:
    """The steps of all environments of a vector, cut into episodes at the end."""

    def __init__(self, keep_observations: bool) -> None:
        self.keep = keep_observations
        self.actions: list[np.ndarray] = []
        self.rewards: list[np.ndarray] = []
        self.successes: list[np.ndarray] = []
        self.observations: list[Observation] = []

    def observe(self, observation: Observation) -> None:
        if self.keep:
            self.observations.append({key: value.copy() for key, value in observation.items()})

    def step(self, actions: np.ndarray, rewards: np.ndarray, info: dict) -> None:
        self.actions.append(actions)
        self.rewards.append(rewards)
        if "success" in info:
            self.successes.append(info["success"])

    def episode(self, env_index: int, seed: int, length: int, terminated: bool, truncated: bool) -> Episode:
        def cut(steps: list[np.ndarray]) -> np.ndarray:
            return np.stack([step[env_index] for step in steps[:length]])

        observations = None
        if self.keep:
            # One more than the actions: what the last of them led to.
            until = self.observations[: length + 1]
            observations = {key: np.stack([o[key][env_index] for o in until]) for key in until[0]}
        return Episode(
            seed=seed,
            actions=cut(self.actions).astype(np.float32),
            rewards=cut(self.rewards),
            successes=cut(self.successes).astype(bool) if self.successes else None,
            terminated=terminated,
            truncated=truncated,
            observations=observations,
        )


def rollout(
    env: VectorEnv,
    agent: Actor,
    seeds: Sequence[int],
    *,
    keep_observations: bool = False,
    record_video: Mapping[int, FrameSink] | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[list[bool | None]], None] = lambda successes: None,
) -> list[Episode]:
    """Run an episode for each seed, side by side, until all have ended; those that have ended are not stepped.

    Args:
        env: N simulators, as `EnvFactory.make_vec` gives them.
        agent: Reset here.
        seeds: Of the episodes, N or fewer; simulators without one stay idle.
        keep_observations: Keep what was observed.
        record_video: By index into `seeds`, the sink of the rendered frames (H, W, 3) uint8: one after the reset and
            one a step. ``frames.append`` keeps them.
        stop: Asked before every step; True ends the rollout.
        on_step: Called after every step with the successes of the episodes that it ended.

    Returns:
        The episodes, in the order of the seeds.

    Raises:
        RolloutInterrupted: `stop` said so.
        UserError: A simulator failed, or the agent's actions are not what it takes.
    """
    if not 0 < len(seeds) <= env.num_envs:
        raise ValueError(f"{len(seeds)} seeds for {env.num_envs} simulators")
    try:
        return _rollout(env, agent, list(seeds), _StepRecorder(keep_observations), record_video or {}, stop, on_step)
    except (EOFError, ConnectionError) as error:
        raise UserError(
            f"The process of a simulator died in an episode with one of the seeds {seeds[0]} to {seeds[-1]} "
            "(too little memory?); set eval.use_async_envs=false or a smaller eval.batch_size.",
            key="eval.use_async_envs",
        ) from error


def _rollout(
    env: VectorEnv,
    agent: Actor,
    seeds: list[int],
    record: _StepRecorder,
    record_video: Mapping[int, FrameSink],
    stop: Callable[[], bool],
    on_step: Callable[[list[bool | None]], None],
) -> list[Episode]:
    active = np.arange(env.num_envs) < len(seeds)
    ended: dict[int, Episode] = {}
    env.set_attr("idle", (~active).tolist())
    env.set_attr("recording", [env_index in record_video for env_index in range(env.num_envs)])
    agent.reset()
    env_seeds: list[int | None] = [*seeds, *[0] * (env.num_envs - len(seeds))]
    observation, _ = env.reset(seed=env_seeds)
    record.observe(observation)
    _capture_frames(env, record_video)
    length = 0
    while active.any():
        if stop():
            raise RolloutInterrupted
        actions = agent(observation)
        _check_actions(actions, env, active, length)
        observation, rewards, terminated, truncated, info = env.step(actions)
        length += 1
        record.step(actions, rewards, info)
        record.observe(observation)
        _capture_frames(env, record_video)
        done = active & (terminated | truncated)
        for env_index in np.flatnonzero(done).tolist():
            flags = bool(terminated[env_index]), bool(truncated[env_index])
            ended[env_index] = record.episode(env_index, seeds[env_index], length, *flags)
        active &= ~done
        on_step([ended[env_index].success for env_index in np.flatnonzero(done).tolist()])
    return [ended[env_index] for env_index in range(len(seeds))]


def _capture_frames(env: VectorEnv, record_video: Mapping[int, FrameSink]) -> None:
    if not record_video:
        return
    frames = env.call("frame")
    for env_index, sink in record_video.items():
        if frames[env_index] is not None:
            sink(frames[env_index])


def _check_actions(actions: np.ndarray, env: VectorEnv, active: np.ndarray, step: int) -> None:
    if actions.shape != env.action_space.shape:
        raise UserError(
            f"The policy gives actions of shape {actions.shape[1:]}, the simulator takes {env.action_space.shape[1:]};"  # type: ignore[index]
            " evaluate it in the env of its dataset.",
            key="env",
        )
    if not np.isfinite(actions[active]).all():
        raise UserError(
            f"The policy's action at step {step} of an episode is not finite; its training has diverged.", key="policy"
        )
