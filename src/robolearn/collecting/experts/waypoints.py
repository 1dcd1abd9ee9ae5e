"""A motion of one Aloha arm, from way-points to an action for every step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator

from robolearn.collecting.experts.viperx import joints_for, rotation

Side = Literal["left", "right"]
BASES = {"left": np.array([-0.469, 0.5, 0.0]), "right": np.array([0.469, 0.5, 0.0])}
SPACING = 0.015
"""Between the points of a straight line for which joints are computed, in m."""


@dataclass(frozen=True)
class Waypoint:
    """Where the fingertips are to be, and when.

    Attributes:
        steps: Time since the way-point before; more where the joints would move too fast.
        position: Of the point between the fingertips in the world, (3,) in m.
        pitch: How far the fingers point downward, in rad; 0 is towards the other arm.
        roll: By how much the hand is turned about the fingers' direction, in rad; at 0 they open sideways.
        gripper: 0 closed to 1 open.
        straight: Go there on a straight line, not by the shortest way of the joints.
    """

    steps: float
    position: tuple[float, float, float]
    pitch: float
    gripper: float
    roll: float = 0.0
    straight: bool = False


class UnreachableError(Exception):
    """No joints of the arm lead to a way-point."""


def joints_at(side: Side, position: Sequence[float], pitch: float, roll: float) -> np.ndarray:
    """The joints (6,) for fingertips at a place of the world.

    Raises:
        UnreachableError: There are none.
    """
    from_base = np.asarray(position, dtype=float) - BASES[side]
    if side == "right":
        from_base[:2] *= -1
    joints = joints_for(from_base, rotation("y", pitch) @ rotation("x", roll))
    if joints is None:
        raise UnreachableError
    return joints


def motion(side: Side, start: np.ndarray, waypoints: Sequence[Waypoint], fastest: float) -> np.ndarray:
    """Joint targets of an arm on its way through way-points, (T, 7).

    Every joint follows a monotone cubic from knot to knot (Fritsch and Carlson, 1980), so that none overshoots, and
    stands still at the beginning and at the end.

    Args:
        side: Which arm.
        start: Joints and gripper it starts with, (7,).
        waypoints: Where it goes.
        fastest: What a joint may change by in a step, about, in rad (gripper: 1 is from closed to open).

    Raises:
        UnreachableError: A way-point is.
    """
    times, knots = [0.0], [np.asarray(start, dtype=float)]
    before = waypoints[0]
    for waypoint in waypoints:
        parts = _parts(before, waypoint) if waypoint.straight else [waypoint]
        for part in parts:
            knot = np.append(joints_at(side, part.position, part.pitch, part.roll), part.gripper)
            # A cubic that starts and ends at rest is at its fastest 1.5 times as fast as on average.
            needed = 1.5 * np.abs(knot - knots[-1]).max() / fastest
            times.append(times[-1] + max(waypoint.steps / len(parts), needed))
            knots.append(knot)
        times[-1] = math.ceil(times[-1])
        before = waypoint
    slopes = PchipInterpolator(times, knots).derivative()(times)
    slopes[[0, -1]] = 0.0
    return CubicHermiteSpline(times, knots, slopes)(np.arange(1, times[-1] + 1))


def _parts(before: Waypoint, waypoint: Waypoint) -> list[Waypoint]:
    """Way-points along the straight line between two."""
    a, b = (np.array([*w.position, w.pitch, w.roll, w.gripper]) for w in (before, waypoint))
    count = max(1, round(float(np.linalg.norm(b[:3] - a[:3])) / SPACING))
    points = [a + (b - a) * i / count for i in range(1, count + 1)]
    return [Waypoint(waypoint.steps, (p[0], p[1], p[2]), p[3], p[5], p[4]) for p in points]
