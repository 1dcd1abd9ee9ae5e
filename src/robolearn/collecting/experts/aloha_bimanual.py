"""Demonstrates Aloha's two tasks: way-points for both hands, rehearsed before they are performed."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import gymnasium as gym
import numpy as np

from robolearn.collecting.experts.expert import Demonstrator
from robolearn.collecting.experts.scene import Scene
from robolearn.collecting.experts.waypoints import UnreachableError, Waypoint, motion
from robolearn.errors import UserError, at_least
from robolearn.types import Depth, PositiveFloat

OPEN, CLOSED = 0.97, 0.065
"""As far as the fingers go."""
MIDDLE = (0.0, 0.5)
"""Where the hands meet in the world, x and y in m."""
SUCCESS = 4
ARM = 7

Ways = tuple[Sequence[Waypoint], Sequence[Waypoint]]
"""Of the left and of the right hand."""
Stage = Callable[[Scene, np.ndarray], Ways]


class AlohaDemonstrator(Demonstrator):
    """Goes through stages, each planned from what is where when it begins; the last one is repeated if need be.

    The hands keep away from the singularity of the wrist, where forearm and hand are in line: fingers point downward
    where the forearm is level, and level where it points downward. All stages are rehearsed at reset, on a copy of
    the physics; if that fails, others follow with the way-points moved a little.

    Args:
        env: gym-aloha's environment.
        fastest: What a joint may change by in a step, in rad.
        pace: What the times are multiplied by; more is slower.
        rehearsals: How often an episode is tried before one is performed that has failed.

    Raises:
        UserError: The environment is another, or a value can't be right.
    """

    task: str
    """What gym-aloha calls the task."""

    def __init__(
        self, env: gym.Env, fastest: PositiveFloat = 0.08, pace: PositiveFloat = 1.0, rehearsals: Depth = 4
    ) -> None:
        super().__init__(env)
        if getattr(env.unwrapped, "task", None) != self.task:
            raise UserError(
                f"demonstrator=aloha_{self.task} demonstrates env=aloha_{self.task}, not {env.unwrapped}.",
                key="demonstrator",
            )
        if not fastest > 0:
            raise UserError(f"demonstrator.fastest={fastest} must be above 0.", key="demonstrator.fastest")
        if not pace > 0:
            raise UserError(f"demonstrator.pace={pace} must be above 0.", key="demonstrator.pace")
        at_least(1, **{"demonstrator.rehearsals": rehearsals})
        self.fastest, self.pace, self.rehearsals = fastest, pace, rehearsals

    @abstractmethod
    def stages(self) -> Sequence[Stage]:
        """What to do one after the other.

        A stage gets the scene as it begins, and (3,) numbers in [-1, 1], 0 at the first rehearsal, to move its
        way-points by.
        """

    def reset(self, rng: np.random.Generator) -> None:
        """Rehearse the episode until it succeeds; the first try leaves nothing to chance.

        Args:
            rng: Moves the way-points of the tries after it.
        """
        self._scene = Scene(self.env.unwrapped)
        shifts = [np.zeros(3), *rng.uniform(-1, 1, (self.rehearsals - 1, 3))]
        rewards = []
        for shift in shifts:
            rewards.append(self._rehearse(shift))
            if rewards[-1] == SUCCESS:
                break
        self._shift = shifts[int(np.argmax(rewards))]
        self._last = self._scene.joints()
        self._stages = iter(self.stages())
        self._actions: Iterator[np.ndarray] = iter(())

    def act(self) -> np.ndarray:
        """Targets of joints and grippers (14,)."""
        action = next(self._actions, None)
        if action is None:
            stage = next(self._stages, self.stages()[-1])
            try:
                self._actions = iter(self._plan(stage, self._scene, self._last, self._shift))
                action = next(self._actions)
            except UnreachableError:
                action = self._last
        self._last = action
        return action.astype(np.float32)

    def _rehearse(self, shift: np.ndarray) -> float:
        """The highest reward of an episode on a copy."""
        scene = self._scene.copy()
        last, highest = scene.joints(), 0.0
        for stage in self.stages():
            try:
                actions = self._plan(stage, scene, last, shift)
            except UnreachableError:
                break
            for last in actions:
                highest = max(highest, scene.step(last.astype(np.float32)))
        return highest

    def _plan(self, stage: Stage, scene: Scene, last: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """A stage's actions (T, 14); the hand that is there first waits for the other."""
        arms = []
        for side, start, way in zip(("left", "right"), (last[:ARM], last[ARM:]), stage(scene, shift), strict=True):
            paced = [replace(waypoint, steps=waypoint.steps * self.pace) for waypoint in way]
            arms.append(motion(side, start, paced, self.fastest))
        steps = max(map(len, arms))
        return np.hstack([np.pad(arm, ((0, steps - len(arm)), (0, 0)), mode="edge") for arm in arms])


def pick(place: np.ndarray, height: float, pitch: float) -> list[Waypoint]:
    """Take something from above and lift it."""
    x, y = float(place[0]), float(place[1])
    return [
        Waypoint(48, (x, y, height + 0.08), pitch, OPEN),
        Waypoint(25, (x, y, height), pitch, OPEN, straight=True),
        Waypoint(16, (x, y, height), pitch, CLOSED),
        Waypoint(20, (x, y, height + 0.08), pitch, CLOSED, straight=True),
    ]


def pitch_of(turned: np.ndarray) -> float:
    """By how much a body (3, 3) is turned about the world's y, in rad."""
    return math.atan2(-turned[2, 0], turned[0, 0])
