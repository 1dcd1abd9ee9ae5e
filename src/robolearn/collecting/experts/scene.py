"""What there is on Aloha's table, and a copy of it in which a demonstration is tried."""

from typing import Any

import numpy as np

from robolearn.collecting.experts.viperx import GRIPPER_TO_FINGERTIP
from robolearn.collecting.experts.waypoints import Side


class Scene:
    """The physics of a gym-aloha environment.

    Args:
        aloha: The environment, unwrapped.
    """

    def __init__(self, aloha: Any) -> None:
        self._env = aloha._env
        self._physics = self._env.physics

    def copy(self) -> "Scene":
        """The same state, to be changed without touching the environment's."""
        scene = object.__new__(Scene)
        scene._env = self._env
        scene._physics = self._physics.copy(share_model=True)
        return scene

    def step(self, action: np.ndarray) -> float:
        """Do what the environment does at an action (14,); only for a copy. Returns the reward."""
        self._env.task.before_step(action, self._physics)
        self._physics.step(self._env._n_sub_steps)
        return float(self._env.task.get_reward(self._physics))

    def joints(self) -> np.ndarray:
        """Joints and grippers of both arms now, (14,), as actions are given."""
        return self._env.task.get_qpos(self._physics)

    def body_pose(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Where a body is now, (3,) in m, and how it is turned, (3, 3)."""
        data = self._physics.named.data
        return data.xpos[name].copy(), data.xmat[name].reshape(3, 3).copy()

    def fingertips(self, side: Side) -> np.ndarray:
        """Where the point between a hand's fingertips is now, (3,) in m; arms lag behind their targets a little."""
        place, turned = self.body_pose(f"vx300s_{side}/gripper_link")
        return place + GRIPPER_TO_FINGERTIP * turned[:, 0]
