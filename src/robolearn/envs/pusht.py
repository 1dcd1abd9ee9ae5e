"""PushT: push a T-shaped block onto its outline (Chi et al., 2023, https://arxiv.org/abs/2303.04137; gym-pusht)."""

import os
import sys
from collections.abc import Mapping
from typing import Literal, get_args

from robolearn.envs.packaged import PackagedEnv, RenderMode
from robolearn.types import Fps, Pixels, Positive

ObsType = Literal["pixels_agent_pos", "environment_state_agent_pos", "pixels", "state"]


class PushT(PackagedEnv):
    """gym-pusht. Actions are target positions (2,) in a square of 512 units, at 10 steps a second.

    An episode ends, as a success, when the block covers more than 95 % of its goal; the reward is that coverage
    divided by 0.95, at most 1. A reset with ``options={"reset_to_state": [agent x, y, block x, y, block's angle]}``
    starts from exactly that state.

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

    entry_point = "robolearn.envs.patched.gym_pusht:PatchedPushT"
    obs_types = get_args(ObsType)
    features = {
        "pixels": "observation.image",
        "agent_pos": "observation.state",
        "environment_state": "observation.environment_state",
        "state": "observation.state",
    }

    def __init__(
        self,
        task: str = "PushT-v0",
        fps: Fps = 10,
        episode_length: Positive = 300,
        obs_type: ObsType = "pixels_agent_pos",
        render_mode: RenderMode | None = "rgb_array",
        observation_width: Pixels = 96,
        observation_height: Pixels = 96,
        visualization_width: Pixels = 384,
        visualization_height: Pixels = 384,
        features_map: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(
            package="gym_pusht",
            task=task,
            fps=fps,
            episode_length=episode_length,
            obs_type=obs_type,
            render_mode=render_mode,
            sizes={
                "observation_width": observation_width,
                "observation_height": observation_height,
                "visualization_width": visualization_width,
                "visualization_height": visualization_height,
            },
            features_map=features_map,
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
