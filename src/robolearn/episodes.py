"""Episodes, what makes them and what they show. Below simulators, data and policies; numpy only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from robolearn.errors import UserError

Observation = dict[str, np.ndarray]
"""Arrays by dataset key: images uint8 (..., C, H, W), all else float32; of N environments with N first."""

FrameSink = Callable[[np.ndarray], None]
"""Takes rendered frames (H, W, 3) uint8 one by one."""


class Actor(Protocol):
    """What acts in N environments at once: an `Agent`, or a script."""

    def reset(self) -> None:
        """Forget all history; new episodes start."""

    def __call__(self, observation: Observation, /) -> np.ndarray:
        """Actions (N, A) for observations (N, ...), in the environment's units."""
        ...


class RolloutInterrupted(Exception):  # noqa: N818 (it is no error)
    """A rollout that was asked to stop before its end."""


@dataclass(frozen=True)
class Episode:
    """One episode of T steps, the terminal one included and nothing after it.

    Attributes:
        seed: The seed of the environment's reset.
        actions: (T, A) float32, as they were given to the environment.
        rewards: (T,) float64.
        successes: (T,) bool, the environment's success flag at each step; None where it has none.
        terminated: The task ended it.
        truncated: The time limit ended it.
        observations: (T + 1, ...) by dataset key, the last one seen after the last action; None unless kept.
    """

    seed: int
    actions: np.ndarray
    rewards: np.ndarray
    successes: np.ndarray | None
    terminated: bool
    truncated: bool
    observations: Observation | None = None

    @property
    def success(self) -> bool | None:
        """Whether the environment reported a success at any step; None where it has no success flag."""
        return None if self.successes is None else bool(self.successes.any())

    def check_rewards(self) -> None:
        """Refuse an episode that can't be learned from.

        Raises:
            UserError: A reward is no finite number.
        """
        if self.unusable_reward:
            raise UserError(
                f"The simulator gave {self.unusable_reward}, from which nothing can be learned",
                key="env",
                fix="mend its reward",
            )

    @property
    def unusable_reward(self) -> str | None:
        """Where the simulator first gave a reward that is no finite number, in words; None where it never did."""
        wrong = np.flatnonzero(~np.isfinite(self.rewards))
        if not wrong.size:
            return None
        return f"a reward of {self.rewards[wrong[0]]} in step {wrong[0] + 1} of the episode with seed {self.seed}"

    def __len__(self) -> int:
        return len(self.rewards)


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


class EpisodeEvaluator(Protocol):
    """Runs episodes of an agent, as `robolearn.rollouts.evaluation.Evaluator` does."""

    def __call__(self, agent: Actor, folder: Path, stop: Callable[[], bool] = ...) -> EvalResult:
        """Evaluate.

        Args:
            agent: Acts, with its policy in evaluation mode.
            folder: For what is to be kept of the episodes.
            stop: Asked before every step; True ends the evaluation.

        Raises:
            RolloutInterrupted: `stop` said so.
        """
        ...
