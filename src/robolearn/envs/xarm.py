"""xArm lift: raise a block from the table (FOWM, Feng et al., 2023, https://arxiv.org/abs/2310.16029; gym-xarm)."""

from collections.abc import Mapping
from typing import Literal, get_args

from robolearn.envs.packaged import PackagedMujocoEnv, RenderMode
from robolearn.types import Fps, Pixels, Positive

ObsType = Literal["pixels_agent_pos", "pixels", "state"]


class Xarm(PackagedMujocoEnv):
    """gym-xarm. Actions (4,) in [-1, 1] move the hand along x, y, z by some 5 mm and close (+1) or open the gripper.

    An episode ends, as a success, when the block is 15 cm above where it started; gym-xarm's own test for that cannot
    be met, see `robolearn.envs.patched.gym_xarm`. The reward is shaped: the negative distance of
    hand and block, a hundredth of it, and once the block is lifted with the hand within 10 cm its height above the
    floor (0.57 to 0.72 m).

    Args:
        task: ``XarmLift-v0``.
        fps: 25, what the simulator does; it is not changed by this key.
        episode_length: Steps after which an episode is cut off.
        obs_type: ``pixels_agent_pos`` (image, hand and gripper (4,)), ``pixels``, or ``state`` (positions, velocities,
            distances of hand and block, (28,)).
        render_mode: ``rgb_array``, or null, which ``state`` allows; then there are no videos.
        render_quality: ``fast``, or ``full`` with shadows and smooth edges, as LeRobot's datasets were rendered.
        observation_width: Width of observed images in pixels.
        observation_height: Height of observed images in pixels.
        visualization_width: Width of video frames in pixels.
        visualization_height: Height of video frames in pixels.
        features_map: Dataset key of each observation key.

    Raises:
        UserError: A value can't be right.
    """

    entry_point = "robolearn.envs.patched.gym_xarm:PatchedXarmLift"
    obs_types = get_args(ObsType)
    features = {"pixels": "observation.image", "agent_pos": "observation.state", "state": "observation.state"}

    def __init__(
        self,
        task: str = "XarmLift-v0",
        fps: Fps = 25,
        episode_length: Positive = 200,
        obs_type: ObsType = "pixels_agent_pos",
        render_mode: RenderMode | None = "rgb_array",
        render_quality: Literal["fast", "full"] = "fast",
        observation_width: Pixels = 84,
        observation_height: Pixels = 84,
        visualization_width: Pixels = 384,
        visualization_height: Pixels = 384,
        features_map: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(
            package="gym_xarm",
            task=task,
            fps=fps,
            episode_length=episode_length,
            obs_type=obs_type,
            render_mode=render_mode,
            render_quality=render_quality,
            sizes={
                "observation_width": observation_width,
                "observation_height": observation_height,
                "visualization_width": visualization_width,
                "visualization_height": visualization_height,
            },
            features_map=features_map,
            instruction="Pick up the block and lift it.",
        )
