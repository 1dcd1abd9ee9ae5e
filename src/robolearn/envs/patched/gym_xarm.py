"""gym-xarm's environment, with a success that can be reached, the reward it was meant to have, and its images."""

import contextlib
import io
from functools import partial
from typing import Any

import numpy as np

with contextlib.redirect_stderr(io.StringIO()):
    # gymnasium-robotics, which this imports, greets with news of environments that nobody asked for.
    from gym_xarm.tasks import Lift

from robolearn.envs.rendering import Cameras, Quality


class PatchedXarmLift(Lift):
    """Lift of gym-xarm 0.1.1, with these faults fixed.

    - Its positions became relative to the table, but the block's first height, and with it the height to lift it to,
      stayed relative to the floor, 0.64 m too high: no episode could succeed.
    - The pick reward is a height above the floor again, as in the simulator that it was taken from; relative to the
      table it would punish coming near the block.
    - A reset leaves nothing of the episode before, so that a seed always gives the same episode; observing and filming
      leave the simulation as it was.
    - It renders on current gymnasium. Actions beyond [-1, 1] are clipped, where the simulator would stop.

    Args:
        render_quality: See `Cameras`.
        **kwargs: gym-xarm's.
    """

    def __init__(self, render_quality: Quality = "fast", **kwargs: Any) -> None:
        self._render_quality: Quality = render_quality
        super().__init__(**kwargs)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        """Step with an action (4,)."""
        observation, reward, terminated, truncated, info = super().step(np.clip(np.asarray(action, np.float32), -1, 1))
        return observation, float(reward), bool(terminated), truncated, info

    def get_reward(self) -> float:
        """The reward of the state, with heights above the floor where it rewards a height."""
        lifted = self.obj[2] > self._init_z + 0.005 and np.linalg.norm(self.obj - self.eef) < 0.1
        picked = lifted or self.obj[2] >= self.z_target - 0.01
        return float(super().get_reward() + (self.center_of_table[2] if picked else 0.0))

    def close(self) -> None:
        """Free the rendering contexts."""
        self._cameras.close()

    def _initialize_simulation(self) -> None:
        super()._initialize_simulation()
        self._cameras = Cameras(self.model, self._render_quality)

    def _initialize_renderer(self, renderer_type: str) -> Any:
        width, height = getattr(self, f"{renderer_type}_width"), getattr(self, f"{renderer_type}_height")
        return partial(self._cameras.capture, self.data, "camera0", width, height)

    def _render(self, renderer: Any) -> np.ndarray:
        return renderer()

    def _sample_goal(self) -> np.ndarray:
        goal = super()._sample_goal()
        self._init_z -= self.center_of_table[2]
        return goal

    def _reset_sim(self) -> bool:
        # Forces, commands and the solver's start would stay from the episode before.
        self._mujoco.mj_resetData(self.model, self.data)  # type: ignore[attr-defined]
        done = super()._reset_sim()
        self._mujoco.mj_forward(self.model, self.data)  # type: ignore[attr-defined]
        return done
