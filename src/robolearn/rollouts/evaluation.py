"""How well an agent does in a simulator."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tqdm import tqdm

from robolearn.envs.factory import EnvFactory
from robolearn.episodes import Actor, Episode, FrameSink
from robolearn.errors import UserError
from robolearn.rng import isolated_rng
from robolearn.rollouts.rollout import rollout
from robolearn.rollouts.video_recorder import grid, mp4, shrink
from robolearn.system.files import write_json
from robolearn.types import Depth, NonNegative, Positive, Seed

TILE = 192
"""Pixels a side that an episode may take in the grid's video."""


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation.

    Attributes:
        scalars: ``success_rate`` in [0, 1] with its 95 % Wilson interval ``success_low`` and ``success_high`` (all
            three left out where the simulator knows no success), ``avg_sum_reward``, ``avg_max_reward``,
            ``avg_length`` in steps, ``seconds_per_episode``.
        episodes: One dict an episode, as in eval.json.
        video: The grid of recorded episodes (T, H, W, 3) uint8, a tile at most 192 pixels a side; None without any.
        fps: Of the video.
    """

    scalars: dict[str, float]
    episodes: list[dict[str, Any]]
    video: np.ndarray | None
    fps: float


class Evaluator:
    """Runs episodes whose seeds depend on `seed` alone: episode i starts from seed + i, whatever the batch size.

    What the policy draws depends on `seed` and `batch_size`, so equal settings repeat an evaluation.

    Args:
        env: The simulator.
        n_episodes: How many episodes.
        batch_size: How many run side by side.
        use_async_envs: Give each simulator a process of its own.
        seed: Of the first episode; also of Python's, numpy's and torch's generators during the evaluation.
        n_videos: How many episodes, the first ones, become MP4s.
        task: The instruction of a policy that uses language; None: see `select_task`.

    Raises:
        UserError: More simulators than episodes, or videos are asked of an environment that renders none.
    """

    metrics: ClassVar[tuple[str, ...]] = (
        "success_rate",
        "success_low",
        "success_high",
        "avg_sum_reward",
        "avg_max_reward",
        "avg_length",
        "seconds_per_episode",
    )
    """The scalars of a result; those of success only where the simulator tells it."""

    def __init__(
        self,
        env: EnvFactory,
        n_episodes: Positive = 50,
        batch_size: Depth = 50,
        use_async_envs: bool = False,
        seed: Seed = 100_000,
        n_videos: NonNegative = 4,
        task: str | None = None,
    ) -> None:
        if batch_size > n_episodes:
            raise UserError(
                f"eval.batch_size={batch_size} is more than eval.n_episodes={n_episodes}, so that simulators would "
                f"stand idle; set eval.batch_size={n_episodes}.",
                key="eval.batch_size",
            )
        if n_videos and not env.can_render:
            raise UserError(
                f"eval.n_videos={n_videos} needs env.render_mode=rgb_array instead of {env.render_mode}; "
                "set eval.n_videos=0 or render.",
                key="eval.n_videos",
            )
        self.env, self.n_episodes, self.batch_size = env, n_episodes, batch_size
        self.task = task
        self.use_async_envs, self.seed, self.n_videos = use_async_envs, seed, min(n_videos, n_episodes)

    def __call__(self, agent: Actor, folder: Path, stop: Callable[[], bool] = lambda: False) -> EvalResult:
        """Evaluate; writes eval.json, episode_NNN.mp4 and grid.mp4.

        All global generators are left as they were found.

        Args:
            agent: Acts, with its policy in evaluation mode.
            folder: Made if it is not there.
            stop: Asked before every step; True ends the evaluation.

        Raises:
            RolloutInterrupted: `stop` said so.
            UserError: A simulator failed, or the folder can't be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with VideoRecorder(folder, self.env.fps) as recorder:
                start = time.perf_counter()
                with isolated_rng(self.seed):
                    episodes = self._episodes(agent, recorder, stop)
                seconds = time.perf_counter() - start
                video = recorder.grid()
            scalars = summary(episodes) | {"seconds_per_episode": seconds / len(episodes)}
            result = EvalResult(scalars, _rows(episodes, recorder.names), video, self.env.fps)
            write_json(folder / "eval.json", self._record(result, getattr(agent, "tasks", ())))
        except OSError as error:
            raise UserError(
                f"The evaluation can't be written to {folder}: {error.strerror or error}; "
                "make room there or give another output_dir.",
                key="output_dir",
            ) from error
        return result

    def _episodes(self, agent: Actor, recorder: "VideoRecorder", stop: Callable[[], bool]) -> list[Episode]:
        episodes: list[Episode] = []
        env = self.env.make_vec(self.batch_size, self.use_async_envs)
        try:
            with _EvalProgress(self.n_episodes) as bar:
                for first in range(0, self.n_episodes, self.batch_size):
                    indices = range(first, min(first + self.batch_size, self.n_episodes))
                    record_video = {n - first: recorder.sink(n) for n in indices if n < self.n_videos}
                    seeds = [self.seed + n for n in indices]
                    episodes += rollout(env, agent, seeds, record_video=record_video, stop=stop, on_step=bar.step)
                    recorder.close()
        finally:
            env.close()
        return episodes

    def _record(self, result: EvalResult, instructions: Sequence[str]) -> dict[str, Any]:
        return {
            **result.scalars,
            "n_episodes": self.n_episodes,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "env": self.env.describe(),
            **({"task": instructions[0]} if instructions else {}),
            "episodes": result.episodes,
        }


class VideoRecorder:
    """Videos of episodes: frames are written to their files as they come, only scaled-down copies stay in memory."""

    def __init__(self, folder: Path, fps: float) -> None:
        self.folder, self.fps = folder, fps
        self.names: list[str] = []
        self._small: list[list[np.ndarray]] = []
        self._files = ExitStack()

    def __enter__(self) -> "VideoRecorder":
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._files.__exit__(*error)

    def sink(self, episode: int) -> FrameSink:
        """Takes the frames of an episode by its index."""
        name, small = f"episode_{episode:03d}.mp4", []
        write = self._files.enter_context(mp4(self.folder / name, self.fps))
        self.names.append(name)
        self._small.append(small)

        def take(frame: np.ndarray) -> None:
            write(frame)
            small.append(shrink(frame, TILE))

        return take

    def close(self) -> None:
        """Finish the files of a batch."""
        self._files.close()

    def grid(self) -> np.ndarray | None:
        """All episodes in one video, also written to grid.mp4."""
        if not self._small:
            return None
        together = grid(self._small, columns=math.ceil(math.sqrt(len(self._small))))
        with mp4(self.folder / "grid.mp4", self.fps) as write:
            for frame in together:
                write(frame)
        return together


@dataclass
class _EvalProgress:
    """Episodes that have ended, with their success so far, and the step of those that run."""

    total: int
    successes: list[bool | None] = field(default_factory=list)
    steps: int = 0

    def __enter__(self) -> "_EvalProgress":
        # disable=None: no bar where there is no terminal, since a log has no use for one
        self._bar = tqdm(
            total=self.total, desc="evaluation", unit="episode", leave=False, disable=None, dynamic_ncols=True
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def step(self, ended: list[bool | None]) -> None:
        self.successes += ended
        self.steps += 1
        known = [success for success in self.successes if success is not None]
        rate = f", success {sum(known) / len(known):.0%}" if known else ""
        self._bar.set_postfix_str(f"step {self.steps}{rate}", refresh=False)
        self._bar.update(len(ended))


def summary(episodes: Sequence[Episode]) -> dict[str, float]:
    """The scalars of an evaluation; means are over episodes."""
    scalars = {
        "avg_sum_reward": float(np.mean([e.rewards.sum() for e in episodes])),
        "avg_max_reward": float(np.mean([e.rewards.max() for e in episodes])),
        "avg_length": float(np.mean([len(e) for e in episodes])),
    }
    successes = [e.success for e in episodes if e.success is not None]
    if len(successes) < len(episodes):
        return scalars
    low, high = wilson_interval(sum(successes), len(successes))
    return {"success_rate": sum(successes) / len(successes), "success_low": low, "success_high": high} | scalars


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927; Newcombe 1998, method 3), without continuity correction."""
    from scipy.stats import binomtest  # takes a second, which only evaluations should

    interval = binomtest(successes, n).proportion_ci(confidence, "wilson")
    return float(interval.low), float(interval.high)


def _rows(episodes: Sequence[Episode], videos: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "episode": number,
            "seed": episode.seed,
            "success": episode.success,
            "sum_reward": float(episode.rewards.sum()),
            "max_reward": float(episode.rewards.max()),
            "length": len(episode),
            "terminated": episode.terminated,
            "truncated": episode.truncated,
            "video": videos[number] if number < len(videos) else None,
        }
        for number, episode in enumerate(episodes)
    ]
