"""Demonstrates how a peg is put into a socket, one in each hand."""

from collections.abc import Sequence

import numpy as np

from robolearn.collecting.experts.aloha_bimanual import CLOSED, MIDDLE, AlohaDemonstrator, Stage, Ways, pick, pitch_of
from robolearn.collecting.experts.scene import Scene
from robolearn.collecting.experts.waypoints import Waypoint

HEIGHT = 0.2
PITCH = 1.3
"""How far the fingers point downward, in rad."""
APART, TOGETHER = 0.17, 0.088
"""From the socket's middle to the peg's before and after, in m; the peg touches the pin at 0.1."""


class AlohaInsertionDemonstrator(AlohaDemonstrator):
    """Each hand picks its part up from above; over the middle of the table the peg goes into the socket.

    See `AlohaDemonstrator` for the arguments.
    """

    task = "insertion"

    def stages(self) -> Sequence[Stage]:
        """Lift both, line them up, push them together."""
        return lift, line_up, push


def lift(scene: Scene, shift: np.ndarray) -> Ways:
    """Pick both up."""
    pitch = PITCH + 0.1 * shift[2]
    left = pick(scene.body_pose("socket")[0], 0.03 + 0.003 * shift[1], pitch)
    return left, pick(scene.body_pose("peg")[0], 0.022 + 0.002 * shift[0], pitch)


def line_up(scene: Scene, shift: np.ndarray) -> Ways:
    """Hold the peg before the socket."""
    left, right, pitches, _ = _aligned(scene, shift)
    return (
        [Waypoint(48, tuple(left), pitches[0], CLOSED)],
        [Waypoint(48, tuple(right), pitches[1], CLOSED)],
    )


def push(scene: Scene, shift: np.ndarray) -> Ways:
    """Push both together, lined up once more."""
    left, right, pitches, axis = _aligned(scene, shift)
    way = (APART - TOGETHER) / 2 * axis
    return (
        [
            Waypoint(8, tuple(left), pitches[0], CLOSED),
            Waypoint(50, tuple(left + way), pitches[0], CLOSED, straight=True),
        ],
        [
            Waypoint(8, tuple(right), pitches[1], CLOSED),
            Waypoint(50, tuple(right - way), pitches[1], CLOSED, straight=True),
        ],
    )


def _aligned(scene: Scene, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[float, float], np.ndarray]:
    """Fingertips' places (3,), their pitches, and the socket's axis (3,), with the parts apart and in line.

    Both parts may have moved in the fingers; the right hand makes up for it.
    """
    (peg, turned), (socket, axes) = scene.body_pose("peg"), scene.body_pose("socket")
    slip = (socket - scene.fingertips("left")) - (peg - scene.fingertips("right"))
    axis = axes[:, 0]
    left = np.array([*MIDDLE, HEIGHT]) - APART / 2 * axis
    pitch = PITCH + 0.1 * shift[2]
    return left, left + APART * axis + slip, (pitch, pitch + pitch_of(turned) - pitch_of(axes)), axis
