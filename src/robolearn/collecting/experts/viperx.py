"""Where the ViperX 300 S of Aloha has its joints for a pose of its gripper, in closed form."""

import math

import numpy as np

SHOULDER_HEIGHT = 0.12705
UPPER_ARM = (0.05955, 0.3)
"""From shoulder to elbow, forward and up, where both are 0."""
FOREARM = 0.3
WRIST_TO_GRIPPER = 0.069744
GRIPPER_TO_FINGERTIP = 0.1347
LOWER = np.array([-3.14158, -1.85005, -1.76278, -3.14158, -1.8675, -3.14158])
UPPER = np.array([3.14158, 1.25664, 1.6057, 3.14158, 2.23402, 3.14158])


def rotation(axis: str, angle: float) -> np.ndarray:
    """The matrix (3, 3) that turns by an angle in rad about an axis, ``x``, ``y`` or ``z``."""
    c, s = math.cos(angle), math.sin(angle)
    i = "xyz".index(axis)
    j, k = (i + 1) % 3, (i + 2) % 3
    matrix = np.eye(3)
    matrix[j, j] = matrix[k, k] = c
    matrix[k, j], matrix[j, k] = s, -s
    return matrix


def joints_for(position: np.ndarray, orientation: np.ndarray) -> np.ndarray | None:
    """Waist, shoulder, elbow, forearm roll, wrist angle and wrist rotate that put the fingertips somewhere.

    The axes of the last three meet in the wrist, whose place therefore fixes the first three; of the two ways to
    hold the elbow the upper one is meant. Of the two ways to turn the wrist the one with the forearm rolled less.

    Args:
        position: Of the point between the fingertips, (3,) in m, in the frame of the arm's base: x forward, z up.
        orientation: Of the gripper, (3, 3): its first axis is where the fingers point, its second the way they open.

    Returns:
        The joints (6,) in rad; None where the arm can't do it.
    """
    x, y, z = position - orientation[:, 0] * (WRIST_TO_GRIPPER + GRIPPER_TO_FINGERTIP)
    upper, lean = math.hypot(*UPPER_ARM), math.atan2(*UPPER_ARM)
    reach, height = math.hypot(x, y), z - SHOULDER_HEIGHT
    distance = math.hypot(reach, height)
    if not abs(upper - FOREARM) < distance < upper + FOREARM:
        return None
    elevation = math.atan2(height, reach)
    at_shoulder = math.acos((upper**2 + distance**2 - FOREARM**2) / (2 * upper * distance))
    at_wrist = math.acos((FOREARM**2 + distance**2 - upper**2) / (2 * FOREARM * distance))
    waist = math.atan2(y, x)
    shoulder = math.pi / 2 - elevation - at_shoulder - lean
    pitch = at_wrist - elevation  # of the forearm, downward
    hand = (rotation("z", waist) @ rotation("y", pitch)).T @ orientation
    sine = math.copysign(math.hypot(hand[1, 0], hand[2, 0]), -hand[2, 0])
    if abs(sine) < 1e-9:
        roll, turn = 0.0, math.atan2(hand[2, 1], hand[1, 1])
    else:
        roll = math.atan2(hand[1, 0] / sine, -hand[2, 0] / sine)
        turn = math.atan2(hand[0, 1] / sine, hand[0, 2] / sine)
    joints = np.array([waist, shoulder, pitch - shoulder, roll, math.atan2(sine, hand[0, 0]), turn])
    return joints if ((joints > LOWER) & (joints < UPPER)).all() else None
