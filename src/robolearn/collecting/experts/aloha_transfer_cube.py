"""Demonstrates how one hand gives a cube to the other."""

import math
from collections.abc import Sequence

import numpy as np

from robolearn.collecting.experts.aloha_bimanual import (
    CLOSED,
    MIDDLE,
    OPEN,
    AlohaDemonstrator,
    Stage,
    Ways,
    pick,
    pitch_of,
)
from robolearn.collecting.experts.scene import Scene
from robolearn.collecting.experts.waypoints import Waypoint

HEIGHT = 0.25
PICK, GIVE = 1.3, 1.05
"""How far the right fingers point downward, in rad."""
SIDE = math.pi / 2
"""By how much the left hand is turned: its fingers close above and below the cube."""


class AlohaTransferCubeDemonstrator(AlohaDemonstrator):
    """The right hand picks the cube up from above and holds it out; the left one takes it from its free sides.

    See `AlohaDemonstrator` for the arguments.
    """

    task = "transfer_cube"

    def stages(self) -> Sequence[Stage]:
        """Offer the cube, take it."""
        return offer, take


def offer(scene: Scene, shift: np.ndarray) -> Ways:
    """Pick the cube up and hold it where the left hand waits."""
    place = scene.body_pose("box")[0] + (0.004 * shift[0], 0, 0)
    left = [Waypoint(110, (MIDDLE[0] - 0.13, MIDDLE[1], HEIGHT), 0.0, OPEN, roll=SIDE)]
    return left, [*pick(place, 0.024 + 0.003 * shift[1], PICK), Waypoint(45, (*MIDDLE, HEIGHT), GIVE, CLOSED)]


def take(scene: Scene, shift: np.ndarray) -> Ways:
    """Come in beside the right fingers, as the cube lies in them, and close."""
    box, turned = scene.body_pose("box")
    # Where the cube will be once the right arm, which lags behind its target, has come to rest.
    x, y, z = box - scene.fingertips("right") + (*MIDDLE, HEIGHT)
    pitch = pitch_of(turned) + 0.1 * shift[2]
    left = [
        Waypoint(25, (x - 0.08, y, z), pitch, OPEN, roll=SIDE),
        Waypoint(25, (x - 0.002, y, z), pitch, OPEN, roll=SIDE, straight=True),
        Waypoint(16, (x - 0.002, y, z), pitch, CLOSED, roll=SIDE),
        Waypoint(30, (x - 0.002, y, z), pitch, CLOSED, roll=SIDE),
    ]
    return left, [Waypoint(96, (*MIDDLE, HEIGHT), GIVE, CLOSED)]
