"""Demonstrations in processes of their own: each opens one simulator and runs the episodes that it is given.

Nothing here imports torch, so that the processes start fast and stay small.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from robolearn.collecting.experts.expert import Demonstrator
from robolearn.data.lerobot_format.recorder import EpisodeRecord, Recorder
from robolearn.episodes import Episode, Observation
from robolearn.errors import UserError, describe_exception
from robolearn.system.workers import Worker, wait_any


@dataclass(frozen=True)
class EpisodeResult:
    """How an episode went. `record` is None where it failed and failures are not kept."""

    seed: int
    length: int
    success: bool | None
    record: EpisodeRecord | None


@dataclass(frozen=True)
class DemonstrationTask:
    """What a worker needs to run episodes.

    Args:
        env_fn: Opens the simulator.
        demonstrator: Builds the demonstrator of a simulator.
        recorder: Turns episodes into records.
        noise: Standard deviation of the noise that is added to actions, in their units; 0 for none.
        keep_failures: Whether failed episodes are recorded too.
    """

    env_fn: Callable[[], gym.Env]
    demonstrator: Callable[..., Demonstrator]
    recorder: Recorder
    noise: float = 0.0
    keep_failures: bool = False

    @contextmanager
    def open(self, stop: Callable[[], bool]) -> Iterator[Callable[[int], EpisodeResult]]:
        """Open the simulator; the context's value runs the episode of a seed.

        Raises:
            UserError: The simulator or the demonstrator can't be opened.
        """
        env = self.env_fn()
        demonstrator = self.demonstrator(env=env)

        def attempt(seed: int) -> EpisodeResult:
            try:
                episode, clean = self._run(env, demonstrator, seed)
            except UserError:
                raise
            except Exception as error:  # the demonstrator may be a user's own
                name = type(demonstrator).__name__
                raise UserError(
                    f"{name} failed in the episode with seed {seed}: {describe_exception(error)}.", key="demonstrator"
                ) from error
            kept = self.keep_failures or episode.success is not False
            record = self.recorder(episode, clean) if kept else None
            return EpisodeResult(seed, len(episode), episode.success, record)

        yield attempt

    def _run(self, env: gym.Env, demonstrator: Demonstrator, seed: int) -> tuple[Episode, np.ndarray]:
        """The episode, and its actions before noise (T, A)."""
        observation, _ = env.reset(seed=seed)
        demonstrator.reset(np.random.default_rng((seed, 0)))
        noise = Noise(self.noise, env.action_space, seed)
        observations, clean, executed, rewards, successes = [observation], [], [], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            action = np.asarray(demonstrator.act(), np.float32)
            noisy = noise(action)
            observation, reward, terminated, truncated, info = env.step(noisy)
            clean.append(action)
            executed.append(noisy)
            observations.append(observation)
            rewards.append(reward)
            if "success" in info:
                successes.append(info["success"])
        episode = Episode(
            seed=seed,
            actions=np.stack(executed),
            rewards=np.array(rewards, np.float64),
            successes=np.array(successes, bool) if successes else None,
            terminated=terminated,
            truncated=truncated,
            observations=_stack(observations),
        )
        return episode, np.stack(clean)


class Noise:
    """Gaussian noise on the actions of one episode, drawn from its seed.

    Args:
        std: Its standard deviation, in the action's units.
        space: Of the action. A value within its bounds is not pushed beyond them; one that already lies outside, as
            Aloha's do, moves freely.
        seed: Of the episode.
    """

    def __init__(self, std: float, space: Any, seed: int) -> None:
        self.std, self.low, self.high = std, space.low, space.high
        self.rng = np.random.default_rng((seed, 1))

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """The action (A,) with noise."""
        if not self.std:
            return action
        noisy = action + self.rng.normal(0, self.std, action.shape).astype(np.float32)
        return np.clip(noisy, np.minimum(self.low, action), np.maximum(self.high, action)).astype(np.float32)


def _stack(observations: list[Observation]) -> Observation:
    return {key: np.stack([each[key] for each in observations]) for key in observations[0]}


class WorkerPool:
    """Workers that run the episodes of seeds; results come in the order of the seeds.

    Args:
        task: What every worker runs.
        workers: Number of processes.
        preload: Modules that are imported once for all of them.
    """

    def __init__(self, task: DemonstrationTask, workers: int, preload: list[str]) -> None:
        fix = "give fewer with workers=, the same command resumes the collection"
        modules = [__name__, *preload]
        self._workers: list[Worker[int, EpisodeResult]] = [
            Worker(task, "demonstration", "workers", fix, modules) for _ in range(workers)
        ]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *error: Any) -> None:
        for worker in self._workers:
            worker.close(timeout=0)  # nothing in it is worth an orderly end

    def attempts(self, seed: int, wanted: Callable[[], int], stop: Callable[[], bool]) -> Iterator[EpisodeResult]:
        """The episodes of `seed`, ``seed + 1`` and so on, in that order; ends when `stop` says so.

        Args:
            seed: Of the first one.
            wanted: How many more are needed; no more episodes are started than that.
            stop: Asked several times a second.

        Raises:
            UserError: A simulator, a demonstrator or a process failed.
        """
        seeds = itertools.count(seed)
        idle, busy = list(self._workers), {}
        order: list[int] = []
        done: dict[int, EpisodeResult] = {}
        while not stop():
            while idle and len(order) < wanted():
                seed, worker = next(seeds), idle.pop(0)
                worker.send(seed)
                busy[worker] = seed
                order.append(seed)
            for worker in wait_any(list(busy), timeout=0.2):
                done[busy.pop(worker)] = worker.receive()
                idle.append(worker)
            while order and order[0] in done:
                yield done.pop(order.pop(0))
