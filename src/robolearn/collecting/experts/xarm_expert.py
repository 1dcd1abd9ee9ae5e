"""Demonstrates xArm lift: above the block, down, close, up; or badly, as data for learning from rewards."""

from dataclasses import dataclass
from typing import Literal, get_args

import gymnasium as gym
import numpy as np

from robolearn.collecting.experts.expert import Demonstrator
from robolearn.errors import UserError, one_of
from robolearn.types import PositiveFloat

Level = Literal["expert", "medium"]

OPEN, CLOSE = -1.0, 1.0
HOVER = 0.06
"""How far above the block the hand comes, in m."""
NEAR = 0.01
"""Within which a place counts as reached, in m."""
GRIP = 12
"""Steps that the fingers need to hold the block."""
LOST = 0.05
"""Between hand and block, in m, from which the block is no longer held."""
RISE = 0.25
"""Of the hand while lifting, in m: beyond the height that is a success."""
SMOOTH = 0.2
"""By how much the motion's part of an action may change in a step."""


@dataclass(frozen=True)
class Perturbation:
    """What goes wrong in an episode.

    Attributes:
        aim: By how far the hand misses the block, (3,) in m.
        grip: Steps for which the gripper closes before the hand rises.
        slip: Height above the table's block, in m, at which the gripper lets go; never if infinite.
        tremor: Of the motion, standard deviation in the action's units.
        slowness: What the motion is divided by.
    """

    aim: np.ndarray
    grip: int = GRIP
    slip: float = np.inf
    tremor: float = 0.0
    slowness: float = 1.0

    @staticmethod
    def draw(rng: np.random.Generator) -> "Perturbation":
        """An episode of the medium level: about every second one fails, each in its own way."""
        return Perturbation(
            aim=rng.normal(0, [0.016, 0.016, 0.01]),
            grip=int(rng.integers(5, 14)),
            slip=float(rng.uniform(0.01, 0.13)) if rng.random() < 0.3 else np.inf,
            tremor=float(rng.uniform(0, 0.6)),
            slowness=float(rng.uniform(1, 2)),
        )


class XarmLiftDemonstrator(Demonstrator):
    """Reads the poses of hand and block at every step, so it corrects disturbances; a lost block is grasped again.

    Args:
        env: gym-xarm's Lift.
        level: ``expert``, or ``medium``, which misses, grips too briefly, lets go, trembles and dawdles, so that
            about half of the episodes fail: data to learn from with rewards, where imitation is not enough.
        gain: Of the motion, in actions per metre that the hand is from where it is to be.

    Raises:
        UserError: The environment is another, or a value can't be right.
    """

    def __init__(self, env: gym.Env, level: Level = "expert", gain: PositiveFloat = 40.0) -> None:
        super().__init__(env)
        if not hasattr(env.unwrapped, "eef"):
            raise UserError(
                f"demonstrator=xarm_lift demonstrates env=xarm_lift, not {env.unwrapped}.", key="demonstrator"
            )
        one_of("demonstrator.level", level, get_args(Level))
        if not gain > 0:
            raise UserError(f"demonstrator.gain={gain} must be above 0.", key="demonstrator.gain")
        self.level, self.gain = level, gain

    def reset(self, rng: np.random.Generator) -> None:
        """Begin above the block; the expert leaves nothing to chance.

        Args:
            rng: Draws the flaws of the medium level.
        """
        self._rng = rng
        self._flaws = Perturbation.draw(rng) if self.level == "medium" else Perturbation(np.zeros(3))
        self._start = float(self.env.unwrapped.obj[2])  # type: ignore[attr-defined]
        self._motion = np.zeros(3)
        self._stage, self._goal, self._closing = self._above, np.zeros(3), 0

    def act(self) -> np.ndarray:
        """Motion of the hand (3,) and of the gripper, as (4,)."""
        xarm = self.env.unwrapped
        hand, block = xarm.eef, xarm.obj  # type: ignore[attr-defined]
        gripper = self._stage(hand, block)
        wish = np.clip(self.gain * (self._goal - hand), -1, 1) / self._flaws.slowness
        self._motion = self._motion + np.clip(wish - self._motion, -SMOOTH, SMOOTH)
        tremor = self._flaws.tremor * self._rng.standard_normal(3) if self._flaws.tremor else 0.0
        return np.append(np.clip(self._motion + tremor, -1, 1), gripper).astype(np.float32)

    def _above(self, hand: np.ndarray, block: np.ndarray) -> float:
        self._goal = block + self._flaws.aim + [0, 0, HOVER]
        if np.linalg.norm(self._goal - hand) < NEAR:
            self._stage = self._down
        return OPEN

    def _down(self, hand: np.ndarray, block: np.ndarray) -> float:
        self._goal = block + self._flaws.aim
        if np.linalg.norm(self._goal - hand) < NEAR:
            self._stage, self._closing = self._close, 0
        return OPEN

    def _close(self, hand: np.ndarray, block: np.ndarray) -> float:
        self._closing += 1
        if self._closing >= self._flaws.grip:
            self._stage, self._goal = self._up, hand + [0, 0, RISE]
        return CLOSE

    def _up(self, hand: np.ndarray, block: np.ndarray) -> float:
        if np.linalg.norm(hand - block) > LOST + np.linalg.norm(self._flaws.aim):
            self._stage = self._above
        return OPEN if block[2] - self._start > self._flaws.slip else CLOSE
