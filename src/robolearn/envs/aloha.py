"""Aloha: two arms insert a peg or hand over a cube (ACT, Zhao et al., 2023, https://arxiv.org/abs/2304.13705)."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from robolearn.envs.packaged import PackagedMujocoEnv, RenderMode
from robolearn.errors import UserError, one_of
from robolearn.types import Fps, Pixels, Positive

ObsType = Literal["pixels_agent_pos", "pixels", "environment_state_agent_pos", "state"]
CAMERAS = ("top", "angle", "front_close", "left_pillar", "right_pillar")
INSTRUCTIONS = {
    "AlohaInsertion-v0": "Insert the peg into the socket.",
    "AlohaTransferCube-v0": "Pick up the cube with the right arm and transfer it to the left arm.",
}
"""As the published datasets word them."""


class Aloha(PackagedMujocoEnv):
    """gym-aloha. Actions (14,) are targets of each arm's six joints in radians and its gripper, 0 shut and 1 open.

    An episode ends, as a success, at reward 4, the last of the four stages that the reward counts: for the insertion
    both held, both lifted, peg and socket touch, peg inside; for the cube touched by the right gripper, lifted,
    touched by the left one, held by the left one alone in the air. Nothing is clipped: the simulator declares [-1, 1],
    which leaves out its own home pose.

    Args:
        task: ``AlohaInsertion-v0`` or ``AlohaTransferCube-v0``.
        fps: 50, what the simulator does; it is not changed by this key.
        episode_length: Steps after which an episode is cut off.
        obs_type: ``pixels_agent_pos`` (images, joints (14,)), ``pixels``, ``environment_state_agent_pos`` (poses of
            the objects as position and quaternion, (14,) for the insertion and (7,) for the cube, and the joints), or
            ``state`` (joints and objects, (28,) or (21,)).
        render_mode: ``rgb_array``, or null, which the obs_types without images allow; then there are no videos.
        cameras: Those that are observed: ``top``, ``angle``, ``front_close``, ``left_pillar``, ``right_pillar``.
        render_quality: ``fast``, or ``full`` with shadows and smooth edges, as LeRobot's datasets were rendered.
        observation_width: Width of observed images in pixels.
        observation_height: Height of observed images in pixels.
        visualization_width: Width of video frames, of the camera ``top``, in pixels.
        visualization_height: Height of video frames in pixels.
        features_map: Dataset key of each observation key.

    Raises:
        UserError: A value can't be right.
    """

    entry_point = "robolearn.envs.patched.gym_aloha:PatchedAloha"
    obs_types = get_args(ObsType)
    features = {
        **{f"pixels/{camera}": f"observation.images.{camera}" for camera in CAMERAS},
        "agent_pos": "observation.state",
        "environment_state": "observation.environment_state",
        "state": "observation.state",
    }

    def __init__(
        self,
        task: str = "AlohaInsertion-v0",
        fps: Fps = 50,
        episode_length: Positive = 400,
        obs_type: ObsType = "pixels_agent_pos",
        render_mode: RenderMode | None = "rgb_array",
        cameras: Sequence[str] = ("top",),
        render_quality: Literal["fast", "full"] = "fast",
        observation_width: Pixels = 640,
        observation_height: Pixels = 480,
        visualization_width: Pixels = 640,
        visualization_height: Pixels = 480,
        features_map: Mapping[str, str | None] | None = None,
    ) -> None:
        if not cameras:
            raise UserError(
                "env.cameras=[] names none; an obs_type without images is env.obs_type=state.", key="env.cameras"
            )
        for camera in cameras:
            one_of("env.cameras", camera, CAMERAS)
        super().__init__(
            package="gym_aloha",
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
            kwargs={"cameras": list(cameras)},
            instruction=INSTRUCTIONS.get(task),
        )
