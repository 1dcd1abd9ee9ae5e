"""gym-pusht's environment, repeatable to the last bit, and with states that can be set exactly."""

import sys
from typing import Any

import numpy as np
from gym_pusht.envs.pusht import PushTEnv, cv2, pymunk_to_shapely


class PatchedPushT(PushTEnv):
    """PushT whose reward repeats, and whose ``options={"reset_to_state": ...}`` is the state that it then has.

    gym-pusht adds up the areas of the block's two parts in the order of a set, by their addresses in memory, so that
    the last bit of the coverage differs from one instance to the next. It also copies the screen pixel by pixel before
    it scales it to the observed image, which takes longer than the physics.
    """

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset to a random state, or to the option ``reset_to_state``: agent xy, block xy, block's angle."""
        state = (options or {}).get("reset_to_state")
        if state is not None:
            options = {**(options or {}), "reset_to_state": self._asked_of_gym_pusht(np.asarray(state, np.float64))}
        return super().reset(seed=seed, options=options)

    def _get_img(self, screen: Any, width: int, height: int, render_action: bool = False) -> np.ndarray:
        if render_action or screen.get_bytesize() != 4 or sys.byteorder != "little":
            return super()._get_img(screen, width, height, render_action)
        columns, rows = screen.get_size()
        # Scaled where the screen lies in memory, with its unused fourth channel.
        pixels = np.frombuffer(screen.get_buffer(), np.uint8).reshape(rows, columns, 4)
        red_green_blue = [shift // 8 for shift in screen.get_shifts()[:3]]
        return cv2.resize(pixels, (width, height))[..., red_green_blue]

    def _get_coverage(self) -> float:
        goal = pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), self._block_shapes)
        return goal.intersection(pymunk_to_shapely(self.block, self._block_shapes)).area / goal.area

    def _asked_of_gym_pusht(self, state: np.ndarray) -> np.ndarray:
        """What to ask for to get a state.

        gym-pusht places the block before it turns it, and turns it about its centre of gravity instead of about the
        origin that the position tells, which moves it.
        """
        cog = np.array(self.block_cog if self.block_cog is not None else self._tee_cog())
        cosine, sine = np.cos(state[4]), np.sin(state[4])
        turned = np.array([[cosine, -sine], [sine, cosine]]) @ cog
        return np.concatenate([state[:2], state[2:4] - cog + turned, state[4:]])

    def _tee_cog(self) -> tuple[float, float]:
        self._setup()
        return tuple(self.block.center_of_gravity)
