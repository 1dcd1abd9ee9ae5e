"""The online phase: while a policy is trained, it collects the episodes it goes on learning from."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from robolearn.agent import Agent
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
from robolearn.types import Spec

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
        do_rollout_async: Collect in a process of its own, while training goes on.
        use_async_envs: Give each simulator of a rollout a process of its own.
        keep: ``all`` episodes, or the ``successful`` ones; null: all if the policy learns from rewards, the
            successful ones if it imitates what it sees.

    Raises:
        UserError: Options contradict each other, or one that the phase needs is missing.
    """

    steps: Annotated[int, Ge(0)]
    rollout_n_episodes: Annotated[int, Ge(1)] = 1
    rollout_batch_size: Annotated[int, Ge(1)] = 1
    steps_between_rollouts: Annotated[int, Ge(1)] | None = None
    sampling_ratio: Annotated[float, Interval(ge=0, le=1)] = 0.5
    env_seed: Annotated[int, Ge(0)] | None = None
    buffer_capacity: Annotated[int, Ge(1)] | None = None
    buffer_seed_size: Annotated[int, Ge(0)] = 0
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
                f"online.rollout_n_episodes={self.rollout_n_episodes}, so that simulators would stand idle."
            )
        if self.buffer_capacity is not None and self.buffer_seed_size > self.buffer_capacity:
            raise UserError(
                f"online.buffer_seed_size={self.buffer_seed_size} frames will never be in a buffer of "
                f"online.buffer_capacity={self.buffer_capacity}."
            )

    def kept(self, policy: Policy) -> Literal["all", "successful"]:
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
            raise UserError(f"online.steps={self.steps} needs a simulator to collect in: env=NAME, or online=none.")
        if offline_steps < (needed := policy.spec.min_offline_steps):
            raise UserError(
                f"offline.steps={offline_steps} is less than the {needed} updates after which this policy can act; "
                "raise it.",
                key="offline.steps",
            )
        if not policy.spec.needs_reward and self.keep == "all":
            raise UserError(
                "online.keep=all: this policy imitates what it sees and would learn its own failures; "
                "set online.keep=successful."
            )
        if self.kept(policy) == "successful" and env.success_key is None:
            raise UserError(
                "online.keep=successful: the simulator does not say which episodes succeed (env.success_key is null); "
                "set online.keep=all."
            )
        assert self.buffer_capacity is not None
        if self.buffer_capacity < env.episode_length + 1:
            raise UserError(
                f"online.buffer_capacity={self.buffer_capacity} is less than one episode: it takes up to "
                f"{env.episode_length + 1} frames (env.episode_length + 1)."
            )

    def collector(
        self, env: EnvFactory, policy: Policy, spec: Spec, folder: Path, agent: Agent, offline_steps: int
    ) -> "Collector":
        """What collects in the phase.

        Args:
            env: Where.
            policy: Which is trained.
            spec: What it observes and commands.
            folder: Of the run.
            agent: Its policy, normaliser, device and precision are those that act.
            offline_steps: Updates before the phase.
        """
        assert self.buffer_capacity is not None
        factory = VectorEnvFactory(env, self.rollout_batch_size, self.use_async_envs)
        dropped = policy.spec.drop_n_last_frames
        replay = ReplayBuffer(folder / "replay", spec, self.buffer_capacity, agent.device, dropped)
        # Last, since it starts a process: a full disk has been told before.
        rollouts = AsyncRolloutWorker(factory, agent) if self.do_rollout_async else SyncRolloutWorker(factory)
        return Collector(self, offline_steps, rollouts, replay, self.kept(policy))


class Collector:
    """Collects episodes with the weights that are trained, and puts them in the buffer.

    Args:
        phase: When and how many.
        begins: The update before which the phase begins.
        rollouts: Runs the episodes, here or in a process of its own.
        replay: Where they go.
        keep: Which of them.
    """

    def __init__(
        self,
        phase: Online,
        begins: int,
        rollouts: RolloutWorker,
        replay: ReplayBuffer,
        keep: Literal["all", "successful"],
    ) -> None:
        self.phase, self.begins, self.rollouts, self.replay, self.keep = phase, begins, rollouts, replay, keep
        self.episodes = 0
        self.env_steps = 0
        self.started_at = -1
        self._needed: dict[int, int] = {}

    def __call__(self, step: int, agent: Callable[[], Agent], stop: Callable[[], bool]) -> dict[str, float]:
        """Collect what is due before update `step` + 1; scalars of what came in, none when nothing did.

        Without a process of its own a rollout is over when this returns. With one, it goes on meanwhile, and only the
        wait for the first `buffer_seed_size` frames stops training.

        Raises:
            RolloutInterrupted: `stop` said so during a rollout.
            UserError: A simulator failed.
        """
        scalars = self._take(step, wait=False, stop=stop)
        if not self._due(step):
            return scalars
        assert self.phase.env_seed is not None
        while True:
            if not self.rollouts.pending:
                self.rollouts.start(step, agent(), self._seeds(), stop)
                self.episodes += self.phase.rollout_n_episodes
            self.started_at = step
            seeding = self.replay.frames < self.phase.buffer_seed_size
            before = self.replay.next_number
            scalars |= self._take(step, wait=seeding or not self.rollouts.is_async, stop=stop)
            # A rollout that kept nothing may be followed by another that keeps nothing: training goes on meanwhile.
            enough = self.replay.frames >= self.phase.buffer_seed_size
            if not seeding or enough or self.replay.next_number == before:
                return scalars

    def finish(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        """Wait for the rollout that is under way after the last update, if one is; scalars of what came in.

        The run's last checkpoint is older than its episodes; a run that goes on with more updates finds them as files.

        Raises:
            RolloutInterrupted: `stop` said so meanwhile; its episodes are lost.
            UserError: A simulator failed.
        """
        return self._take(step, wait=True, stop=stop)

    def _due(self, step: int) -> bool:
        if step < self.begins or self.started_at == step:
            return False
        assert self.phase.steps_between_rollouts is not None
        return (step - self.begins) % self.phase.steps_between_rollouts == 0

    def _seeds(self) -> list[int]:
        first = (self.phase.env_seed or 0) + self.episodes
        return list(range(first, first + self.phase.rollout_n_episodes))

    def _take(self, step: int, wait: bool, stop: Callable[[], bool]) -> dict[str, float]:
        collected = self.rollouts.get(wait, stop)
        if collected is None:
            return {}
        kept = [episode for episode in collected.episodes if self.keep == "all" or episode.success]
        for episode in kept:
            self.replay.add(episode)
        self.env_steps += sum(len(episode) for episode in collected.episodes)
        scalars = _figures(collected, step) | {
            "episodes": float(self.episodes),
            "env_steps": float(self.env_steps),
            "buffer_frames": float(self.replay.frames),
            "kept": len(kept) / len(collected.episodes),
        }
        figures = [name for name in ("success_rate", "avg_sum_reward") if name in scalars]
        told = ", ".join(f"{name} {scalars[name]:.3g}" for name in figures)
        log.info("Collected %d episodes before step %d: %s.", len(collected.episodes), step + 1, told)
        return {f"online/{name}": value for name, value in scalars.items()}

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a restarted run goes on from."""
        state = self.replay.state_dict()
        self._needed[step] = state["first_number"]
        return {
            "replay": state,
            "episodes": self.episodes,
            "env_steps": self.env_steps,
            "started_at": self.started_at,
            "needed": dict(self._needed),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state.

        Without a process of its own, episodes collected after it are removed and will be collected again, the same;
        with one, which can't repeat them, they are kept.
        """
        self.replay.load_state_dict(state["replay"], keep_newer=self.rollouts.is_async)
        self.episodes, self.env_steps, self.started_at = state["episodes"], state["env_steps"], state["started_at"]
        self._needed = dict(state["needed"])

    def close(self) -> None:
        """Close the simulators."""
        self.rollouts.close()

    def saved(self, steps: Sequence[int]) -> None:
        """Checkpoints of these steps are there; no others' episodes are needed any more."""
        self._needed = {step: first for step, first in self._needed.items() if step in steps}
        if self._needed:
            self.replay.prune(min(self._needed.values()))


def _figures(collected: RolloutResult, step: int) -> dict[str, float]:
    """How a rollout went."""
    frames = sum(len(episode) for episode in collected.episodes)
    return summary(collected.episodes) | {
        "env_steps_per_s": frames / max(collected.seconds, 1e-9),
        "weights_age": float(step - collected.step),
    }
