"""Episodes and what makes them: observations, actors, frames. Below simulators, data and policies; numpy only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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

    def __len__(self) -> int:
        return len(self.rewards)
