"""What the recipes of the three packaged simulators have in common."""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from robolearn.envs.factory import EnvFactory
from robolearn.errors import UserError, one_of

RenderMode = Literal["rgb_array"]


class PackagedEnv(EnvFactory):
    """A task of a package whose environments take an obs_type and the sizes of images.

    Args:
        package: Python package whose import registers the task.
        task: What follows the package in gymnasium's id.
        fps: Control steps a second of simulated time.
        episode_length: Steps after which an episode is cut off.
        obs_type: One of `obs_types`.
        render_mode: ``rgb_array`` or null.
        sizes: Widths and heights in pixels, by the name of the environment's argument.
        features_map: Dataset key of each observation key; null: those of `features`.
        kwargs: Further arguments of the environment.
        environ: Environment variables that the simulator needs, where they are not already set.
        instruction: The task in natural language, for policies that use language.

    Raises:
        UserError: A value can't be right.
    """

    id_key = "env.task"
    obs_types: ClassVar[tuple[str, ...]]
    features: ClassVar[dict[str, str | None]]

    def __init__(
        self,
        package: str,
        task: str,
        fps: float,
        episode_length: int,
        obs_type: str,
        render_mode: RenderMode | None,
        sizes: Mapping[str, int],
        features_map: Mapping[str, str | None] | None,
        kwargs: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        instruction: str | None = None,
    ) -> None:
        one_of("env.obs_type", obs_type, self.obs_types)
        if "pixels" in obs_type and render_mode != "rgb_array":
            raise UserError(f"env.obs_type={obs_type} needs env.render_mode=rgb_array.", key="env.render_mode")
        super().__init__(
            id=f"{package}/{task}",
            package=package,
            fps=fps,
            episode_length=episode_length,
            features_map=self.features if features_map is None else features_map,
            obs_type=obs_type,
            render_mode=render_mode,
            kwargs={**sizes, **(kwargs or {})},
            environ=environ,
            instruction=instruction,
        )


class PackagedMujocoEnv(PackagedEnv):
    """A task whose images MuJoCo renders, in a quality that changes them a little."""

    # What a fork would inherit of OpenGL works in the process that opened it alone.
    fork_safe = False
    render_qualities = ("fast", "full")

    def __init__(self, *, render_quality: str, kwargs: Mapping[str, Any] | None = None, **options: Any) -> None:
        one_of("env.render_quality", render_quality, self.render_qualities)
        environ = {"MUJOCO_GL": "egl"} if sys.platform.startswith("linux") else {}
        super().__init__(kwargs={**(kwargs or {}), "render_quality": render_quality}, environ=environ, **options)

    @property
    def render_settings(self) -> dict[str, Any]:
        """The render quality, where images are observed."""
        sees = "pixels" in self.kwargs["obs_type"]
        return {"render_quality": self.kwargs["render_quality"]} if sees else {}
