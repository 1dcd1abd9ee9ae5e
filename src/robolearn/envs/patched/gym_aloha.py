"""gym-aloha's environments: repeatable, with the cameras that are asked for and none else, and with states alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from dm_control.rl.control import PhysicsError
from gym_aloha.constants import normalize_puppet_gripper_position
from gym_aloha.env import AlohaEnv
from gymnasium import spaces

from robolearn.envs.rendering import Cameras, Quality

GRIPPERS = (6, 13)


class PatchedAloha(AlohaEnv):
    """AlohaEnv, with these faults fixed.

    - Every reset is seeded: one without a seed continues from the seed before, where gym-aloha's is random.
    - It renders the cameras asked for; gym-aloha renders three, whatever is observed, at every step.
    - The action space says what the actuators take; gym-aloha's [-1, 1] leaves out its own home pose.
    - Commands that tear the simulation apart end the episode, as a failure; gym-aloha raises.
    - There are observations without images: the joints with the poses of the objects (position, quaternion).

    Args:
        task: ``insertion`` or ``transfer_cube``.
        obs_type: ``pixels_agent_pos``, ``pixels``, ``environment_state_agent_pos`` or ``state``.
        cameras: Names of the scene's cameras to observe.
        render_quality: See `Cameras`.
        **kwargs: gym-aloha's.
    """

    def __init__(
        self,
        task: str,
        obs_type: str = "pixels_agent_pos",
        cameras: Sequence[str] = ("top",),
        render_quality: Quality = "fast",
        **kwargs: Any,
    ) -> None:
        super().__init__(task, obs_type="pixels", **kwargs)
        self.obs_type, self.cameras = obs_type, tuple(cameras)
        self._physics = self._env.physics
        # gym-aloha would render three cameras here.
        self._env.task.get_observation = self._numbers
        self._cameras = Cameras(self._physics.model.ptr, render_quality)
        self.observation_space = self._observation_space()
        self.action_space = self._action_space()

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset to the objects' poses of the seed, or of one drawn after the seed before."""
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._last, info = super().reset(seed=seed, options=options)
        return self._last, info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Step with an action (14,)."""
        try:
            self._last, reward, terminated, truncated, info = super().step(action)
        except PhysicsError:
            # MuJoCo has already gone back to the start.
            return self._last, 0.0, True, False, {"is_success": False}
        return self._last, reward, terminated, truncated, info

    def close(self) -> None:
        """Free the rendering contexts."""
        self._cameras.close()

    def _numbers(self, physics: Any) -> dict[str, np.ndarray]:
        task = self._env.task
        return {"qpos": task.get_qpos(physics), "env_state": task.get_env_state(physics)}

    def _format_raw_obs(self, raw_obs: dict[str, np.ndarray]) -> Any:
        joints, objects = raw_obs["qpos"], raw_obs["env_state"]
        if self.obs_type == "state":
            return np.concatenate([joints, objects])
        if self.obs_type == "environment_state_agent_pos":
            return {"environment_state": objects, "agent_pos": joints}
        size = self.observation_width, self.observation_height
        pixels = {name: self._cameras.capture(self._physics.data.ptr, name, *size) for name in self.cameras}
        return {"pixels": pixels} if self.obs_type == "pixels" else {"pixels": pixels, "agent_pos": joints}

    def _render(self, visualize: bool = False) -> np.ndarray:
        width, height = self.visualization_width, self.visualization_height
        return self._cameras.capture(self._physics.data.ptr, "top", width, height)

    def _observation_space(self) -> spaces.Space:
        def numbers(*values: np.ndarray) -> spaces.Box:
            return spaces.Box(-np.inf, np.inf, (sum(map(len, values)),), np.float64)

        now = self._numbers(self._physics)
        joints, objects = now["qpos"], now["env_state"]
        if self.obs_type == "state":
            return numbers(joints, objects)
        if self.obs_type == "environment_state_agent_pos":
            return spaces.Dict({"environment_state": numbers(objects), "agent_pos": numbers(joints)})
        image = spaces.Box(0, 255, (self.observation_height, self.observation_width, 3), np.uint8)
        pixels = spaces.Dict(dict.fromkeys(self.cameras, image))
        if self.obs_type == "pixels":
            return spaces.Dict({"pixels": pixels})
        return spaces.Dict({"pixels": pixels, "agent_pos": numbers(joints)})

    def _action_space(self) -> spaces.Box:
        # The actuators' right fingers mirror the left ones and are not commanded.
        limits = np.delete(self._physics.model.actuator_ctrlrange.copy(), [7, 15], axis=0)
        limits[list(GRIPPERS)] = normalize_puppet_gripper_position(limits[list(GRIPPERS)])
        return spaces.Box(*limits.T.astype(np.float32), dtype=np.float32)
