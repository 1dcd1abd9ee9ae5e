"""What collecting demonstrations may expect of every demonstrator."""

from abc import ABC, abstractmethod

import gymnasium as gym
import numpy as np


class Demonstrator(ABC):
    """Demonstrates a task in one simulator, whose full state it sees; lives in that simulator's process.

    Nothing here or in its subclasses imports torch, so that worker processes start fast and stay small.

    Args:
        env: The simulator; its own state is reached through ``env.unwrapped``.
    """

    def __init__(self, env: gym.Env) -> None:
        self.env = env

    @abstractmethod
    def reset(self, rng: np.random.Generator) -> None:
        """Plan the episode that the simulator was just reset to.

        Args:
            rng: All randomness of the demonstration, so that the same seed gives the same episode.
        """

    @abstractmethod
    def act(self) -> np.ndarray:
        """The action (A,) float32 for the state the simulator is in now, in the simulator's units."""
