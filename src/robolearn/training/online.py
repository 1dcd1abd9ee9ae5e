"""The online phase: while a policy is trained, it collects episodes to learn from."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from robolearn.agent import Agent, AgentFactory
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.envs.factory import EnvFactory
from robolearn.errors import UserError
from robolearn.policies.base import Policy
from robolearn.rollouts.evaluation import summary
from robolearn.rollouts.rollout_workers import (
    AsyncRolloutWorker,
    RolloutResult,
    RolloutWorker,
    SyncRolloutWorker,
    VectorEnvFactory,
)
from robolearn.types import Depth, Fraction, NonNegative, Positive, Seed, Spec

log = logging.getLogger(__name__)


@dataclass
class Online:
    """How episodes are collected and mixed in.

    Args:
        steps: Updates of the phase, after those of the offline phase.
        rollout_n_episodes: Episodes of a rollout.
        rollout_batch_size: How many of them run side by side.
        steps_between_rollouts: Updates from one rollout to the next.
        sampling_ratio: Share of collected samples in every batch.
        env_seed: Of the first episode; every further one counts up by 1.
        buffer_capacity: Frames kept, the newest; an episode of T steps takes T + 1.
        buffer_seed_size: Frames to collect before the first mixed batch.
        do_rollout_async: Collect in a separate process, in parallel with training.
        use_async_envs: Give each simulator of a rollout a process of its own.
        keep: ``all`` episodes, or the ``successful`` ones; null: all if the policy learns from rewards, the
            successful ones if it imitates what it sees.

    Raises:
        UserError: Options contradict each other, or one that the phase needs is missing.
    """

    steps: NonNegative
    rollout_n_episodes: Positive = 1
    rollout_batch_size: Depth = 1
    steps_between_rollouts: Positive | None = None
    sampling_ratio: Fraction = 0.5
    env_seed: Seed | None = None
    buffer_capacity: Positive | None = None
    buffer_seed_size: NonNegative = 0
    do_rollout_async: bool = False
    use_async_envs: bool = False
    keep: Literal["all", "successful"] | None = None

    def __post_init__(self) -> None:
        needed = {
            "steps_between_rollouts": "updates from one rollout to the next, such as 300",
            "env_seed": "the seed of the first episode collected, such as 10000",
            "buffer_capacity": "how many frames are kept, such as 100000",
        }
        for name, meaning in needed.items():
            if self.steps and getattr(self, name) is None:
                raise UserError(f"online.{name} is missing: {meaning}.", key=f"online.{name}")
        if self.rollout_batch_size > self.rollout_n_episodes:
            raise UserError(
                f"online.rollout_batch_size={self.rollout_batch_size} is more than "
                f"online.rollout_n_episodes={self.rollout_n_episodes}, so that simulators would stand idle.",
                key="online.rollout_batch_size",
            )
        if self.buffer_capacity is not None and self.buffer_seed_size > self.buffer_capacity:
            raise UserError(
                f"online.buffer_seed_size={self.buffer_seed_size} frames will never be in a buffer of "
                f"online.buffer_capacity={self.buffer_capacity}.",
                key="online.buffer_seed_size",
            )

    def episode_filter(self, policy: Policy) -> Literal["all", "successful"]:
        """Which episodes this policy learns from."""
        return self.keep or ("all" if policy.spec.needs_reward else "successful")

    def check(self, policy: Policy, env: Any, offline_steps: int) -> None:
        """See that the phase can be run, before anything is.

        Args:
            policy: What is trained.
            env: The simulator, None where there is none.
            offline_steps: Updates before the phase.

        Raises:
            UserError: It can't.
        """
        if not self.steps:
            return
        if env is None:
            message = f"online.steps={self.steps} needs a simulator to collect in: env=NAME, or online=none."
            raise UserError(message, key="env")
        if offline_steps < (needed := policy.spec.min_offline_steps):
            raise UserError(
                f"offline.steps={offline_steps} is less than the {needed} updates after which this policy can act; "
                "raise it.",
                key="offline.steps",
            )
        if not policy.spec.needs_reward and self.keep == "all":
            raise UserError(
                "online.keep=all: this policy imitates what it sees and would learn its own failures",
                key="online.keep",
                fix="set online.keep=successful",
            )
        if self.episode_filter(policy) == "successful" and env.success_key is None:
            raise UserError(
                "online.keep=successful: the simulator does not say which episodes succeed (env.success_key is null)",
                key="online.keep",
                fix="set online.keep=all",
            )
        assert self.buffer_capacity is not None
        if self.buffer_capacity < env.episode_length + 1:
            raise UserError(
                f"online.buffer_capacity={self.buffer_capacity} is less than one episode: it takes up to "
                f"{env.episode_length + 1} frames (env.episode_length + 1).",
                key="online.buffer_capacity",
            )

    def collector(
        self,
        env: EnvFactory,
        spec: Spec,
        folder: Path,
        make_agent: AgentFactory,
        eval_policy: Policy,
        offline_steps: int,
        task_index: int = 0,
    ) -> "Collector":
        """Make the collector of the phase.

        Args:
            env: The simulator.
            spec: Features of the policy.
            folder: Of the run.
            make_agent: Makes the agents that explore.
            eval_policy: The policy that acts; its weights change in place.
            offline_steps: Updates before the phase.
            task_index: The task that the policy is given, among those of the batches.
        """
        assert self.buffer_capacity is not None
        factory = VectorEnvFactory(env, self.rollout_batch_size, self.use_async_envs)
        replay = ReplayBuffer(
            folder / "replay", spec, self.buffer_capacity, make_agent.device, eval_policy.spec.drop_n_last_frames
        )
        # Last, since it starts a process: a full disk is reported before.
        rollouts = (
            AsyncRolloutWorker(factory, make_agent, eval_policy)
            if self.do_rollout_async
            else SyncRolloutWorker(factory)
        )
        rollout_agent = partial(make_agent, eval_policy, explore=True)
        episode_filter = self.episode_filter(eval_policy)
        return Collector(self, offline_steps, rollouts, rollout_agent, replay, episode_filter, task_index)


class Collector:
    """Collects episodes with the weights that are trained, and puts them in the buffer.

    Args:
        options: When and how many.
        start_step: Updates before the phase.
        rollouts: Runs the episodes, here or in a process of its own.
        rollout_agent: Makes the agent of a rollout.
        replay: Where they go.
        episode_filter: Which of them are kept.
        task_index: The task that the policy is given in them.
    """

    def __init__(
        self,
        options: Online,
        start_step: int,
        rollouts: RolloutWorker,
        rollout_agent: Callable[[], Agent],
        replay: ReplayBuffer,
        episode_filter: Literal["all", "successful"],
        task_index: int = 0,
    ) -> None:
        self.options, self.start_step, self.rollouts, self.rollout_agent = options, start_step, rollouts, rollout_agent
        self.replay, self.episode_filter, self.task_index = replay, episode_filter, task_index
        self.episodes = 0
        self.env_steps = 0
        self.started_at = -1
        # The first episode in the buffer: of the state last saved or restored, and of each checkpoint by its step.
        self._first_episode = 0
        self._first_episodes: dict[int, int] = {}

    def collect(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        """Take what has come in, and collect what is due before update `step`.

        Args:
            step: Updates done.
            stop: Asked before every step of the simulators; True ends the rollout.

        Returns:
            Scalars to log; none where nothing came in.

        Raises:
            RolloutInterrupted: `stop` said so during a rollout.
            UserError: A simulator failed.
        """
        scalars = self._take(step, wait=False, stop=stop)
        if not self._due(step):
            return scalars
        assert self.options.env_seed is not None
        while True:
            if not self.rollouts.pending:
                self.rollouts.start(step, self.rollout_agent(), self._seeds(), stop)
                self.episodes += self.options.rollout_n_episodes
            self.started_at = step
            seeding = self.replay.frames < self.options.buffer_seed_size
            before = self.replay.next_index
            scalars |= self._take(step, wait=seeding or not self.rollouts.is_async, stop=stop)
            # A rollout that kept nothing may be followed by another that keeps nothing: training continues meanwhile.
            enough = self.replay.frames >= self.options.buffer_seed_size
            if not seeding or enough or self.replay.next_index == before:
                return scalars

    def finish(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        """Wait for the rollout that is under way after the last update, if one is; scalars of what came in.

        The run's last checkpoint is older than its episodes; a run that is resumed with more updates finds them as
        files.

        Raises:
            RolloutInterrupted: `stop` said so meanwhile; its episodes are lost.
            UserError: A simulator failed.
        """
        return self._take(step, wait=True, stop=stop)

    def _due(self, step: int) -> bool:
        assert self.options.steps_between_rollouts is not None
        return self.started_at != step and (step - self.start_step) % self.options.steps_between_rollouts == 0

    def _seeds(self) -> list[int]:
        first = (self.options.env_seed or 0) + self.episodes
        return list(range(first, first + self.options.rollout_n_episodes))

    def _take(self, step: int, wait: bool, stop: Callable[[], bool]) -> dict[str, float]:
        collected = self.rollouts.get(wait, stop)
        if collected is None:
            return {}
        kept = [episode for episode in collected.episodes if self.episode_filter == "all" or episode.success]
        for episode in kept:
            self.replay.add(episode, self.task_index)
        self.env_steps += sum(len(episode) for episode in collected.episodes)
        scalars = _figures(collected, step) | {
            "episodes": float(self.episodes),
            "env_steps": float(self.env_steps),
            "buffer_frames": float(self.replay.frames),
            "kept": len(kept) / len(collected.episodes),
        }
        figures = [name for name in ("success_rate", "avg_sum_reward") if name in scalars]
        shown = ", ".join(f"{name} {scalars[name]:.3g}" for name in figures)
        log.info("Collected %d episodes before step %d: %s.", len(collected.episodes), step + 1, shown)
        return {f"online/{name}": value for name, value in scalars.items()}

    def state_dict(self) -> dict[str, Any]:
        """The state to save; the episodes themselves lie in files."""
        replay = self.replay.state_dict()
        self._first_episode = replay["first_index"]
        return {
            "replay": replay,
            "episodes": self.episodes,
            "env_steps": self.env_steps,
            "started_at": self.started_at,
            "first_episodes": dict(self._first_episodes),
        }

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore a state.

        Without a process of its own, episodes collected after it are removed and will be collected again, the same;
        with one, which can't repeat them, they are kept.
        """
        self.replay.load_state_dict(state["replay"], keep_newer=self.rollouts.is_async)
        self.episodes, self.env_steps, self.started_at = state["episodes"], state["env_steps"], state["started_at"]
        self._first_episode, self._first_episodes = state["replay"]["first_index"], dict(state["first_episodes"])

    def clear(self) -> None:
        """Start with an empty buffer: what an earlier attempt left in the folder is removed."""
        self.replay.clear()

    def checkpointed(self, step: int, kept: Sequence[int]) -> None:
        """Remove the files of episodes that no checkpoint needs any more.

        Args:
            step: Whose checkpoint holds the state last saved or restored.
            kept: The steps whose checkpoints exist.
        """
        self._first_episodes[step] = self._first_episode
        self._first_episodes = {step: first for step, first in self._first_episodes.items() if step in kept}
        if self._first_episodes:
            self.replay.prune(min(self._first_episodes.values()))

    def close(self) -> None:
        """Close the simulators."""
        self.rollouts.close()


def _figures(collected: RolloutResult, step: int) -> dict[str, float]:
    """How a rollout went."""
    frames = sum(len(episode) for episode in collected.episodes)
    return summary(collected.episodes) | {
        "env_steps_per_s": frames / max(collected.seconds, 1e-9),
        "weights_age": float(step - collected.step),
    }
