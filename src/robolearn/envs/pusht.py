"""PushT: push a T-shaped block onto its outline (Chi et al., 2023, https://arxiv.org/abs/2303.04137; gym-pusht)."""

import difflib
import os
import sys
from collections.abc import Mapping
from typing import Any, Literal, get_args

import gymnasium as gym

from robolearn.envs.simulator import Simulator
from robolearn.errors import UserError

ObsType = Literal["pixels_agent_pos", "environment_state_agent_pos", "pixels", "state"]

FEATURES: dict[str, str | None] = {
    "pixels": "observation.image",
    "agent_pos": "observation.state",
    "environment_state": "observation.environment_state",
    "state": "observation.state",
}


def order_shapes(env: gym.Env) -> gym.Env:
    """Make the reward repeatable: gym-pusht adds up the areas of the block's two parts in the order of a set,
    by their addresses in memory, so that the last bit of the coverage differs from one instance to the next.
    """
    from gym_pusht.envs.pusht import pymunk_to_shapely

    pusht: Any = env.unwrapped

    def coverage() -> float:
        shapes = pusht._block_shapes
        goal = pymunk_to_shapely(pusht.get_goal_pose_body(pusht.goal_pose), shapes)
        return goal.intersection(pymunk_to_shapely(pusht.block, shapes)).area / goal.area

    pusht._get_coverage = coverage
    return env


class PushT(Simulator):
    """gym-pusht. Actions are target positions (2,) in a square of 512 units, at 10 steps a second.

    An episode ends, as a success, when the block covers more than 95 % of its goal; the reward is that coverage
    divided by 0.95, at most 1.

    Args:
        task: ``PushT-v0``.
        fps: 10, what the simulator does; it is not changed by this key.
        episode_length: Steps after which an episode is cut off.
        obs_type: ``pixels_agent_pos`` (image, agent (2,)), ``environment_state_agent_pos`` (block's eight keypoints
            (16,), agent (2,)), ``pixels``, or ``state`` (agent, block and its angle, (5,)).
        render_mode: ``rgb_array``, or null, which the obs_types without images allow; then there are no videos.
        observation_width: Width of observed images in pixels.
        observation_height: Height of observed images in pixels.
        visualization_width: Width of video frames in pixels.
        visualization_height: Height of video frames in pixels.
        features_map: Dataset key of each observation key.

    Raises:
        UserError: A value can't be right.
    """

    id_key = "env.task"
    mend = staticmethod(order_shapes)

    def __init__(
        self,
        task: str = "PushT-v0",
        fps: float = 10,
        episode_length: int = 300,
        obs_type: ObsType = "pixels_agent_pos",
        render_mode: Literal["rgb_array"] | None = "rgb_array",
        observation_width: int = 96,
        observation_height: int = 96,
        visualization_width: int = 384,
        visualization_height: int = 384,
        features_map: Mapping[str, str | None] | None = None,
    ) -> None:
        known = get_args(ObsType)
        if obs_type not in known:
            near = difflib.get_close_matches(obs_type, known, n=1, cutoff=0)
            raise UserError(f"env.obs_type={obs_type} is none of {', '.join(known)} (did you mean {near[0]}?)")
        if "pixels" in obs_type and render_mode != "rgb_array":
            raise UserError(f"env.obs_type={obs_type} needs env.render_mode=rgb_array.")
        sizes = {
            "observation_width": observation_width,
            "observation_height": observation_height,
            "visualization_width": visualization_width,
            "visualization_height": visualization_height,
        }
        for name, size in sizes.items():
            if size < 1:
                raise UserError(f"env.{name}={size} must be at least 1.")
        super().__init__(
            id=f"gym_pusht/{task}",
            package="gym_pusht",
            fps=fps,
            episode_length=episode_length,
            features_map=FEATURES if features_map is None else features_map,
            obs_type=obs_type,
            render_mode=render_mode,
            kwargs=sizes,
            environ=_environ(),
            instruction="Push the T-shaped block onto the T-shaped target.",
        )


def _environ() -> dict[str, str]:
    """pygame greets on import, and looks for a display where there may be none."""
    variables = {"PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and not has_display:
        variables["SDL_VIDEODRIVER"] = "dummy"
    return variables
