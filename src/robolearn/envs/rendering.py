"""Images of MuJoCo scenes, rendered correctly also by many simulators side by side in one process."""

import atexit
import weakref
from typing import Any, Literal

import mujoco
import numpy as np

from robolearn.envs.dependencies import display_error_message
from robolearn.errors import UserError

Quality = Literal["fast", "full"]

_every: weakref.WeakSet["Cameras"] = weakref.WeakSet()


class Cameras:
    """The cameras of one simulator, with OpenGL contexts of their own, created at first use.

    gymnasium's renderer blackens the others when one is closed, and dm_control's and another one in the same process
    corrupt each other's images silently. These make their context current before they draw, and free no other.

    Args:
        model: The scene (``mujoco.MjModel``).
        quality: ``full`` as the scene says, with shadows and smooth edges, or ``fast`` without them, which a CPU
            renders ten times as fast.
    """

    def __init__(self, model: Any, quality: Quality) -> None:
        self._model = model
        self._renderers: dict[tuple[int, int], Any] = {}
        _every.add(self)
        _close_before_others()
        if quality == "fast":
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0

    def capture(self, data: Any, camera: str, width: int, height: int) -> np.ndarray:
        """What a camera sees, (height, width, 3) uint8.

        Raises:
            UserError: OpenGL cannot be had here, there is no such camera, or the image is black.
        """
        renderer = self._renderers.get((width, height)) or self._open(width, height)
        renderer.update_scene(data, camera=camera)
        image = renderer.render()
        # Every eighth row is enough: what goes wrong with OpenGL leaves all of them black.
        if not image[::8].any():
            raise UserError(
                f"The image of the camera {camera} is black, so OpenGL does not work here; update the graphics "
                "driver, or render without it: MUJOCO_GL=osmesa (apt-get install -y libosmesa6).",
                key="MUJOCO_GL",
            )
        return image

    def close(self) -> None:
        """Free the contexts; they are created again at the next use."""
        for renderer in self._renderers.values():
            _free(renderer)
        self._renderers.clear()

    def __del__(self) -> None:
        self.close()

    def _open(self, width: int, height: int) -> Any:
        view = self._model.vis.global_
        view.offwidth, view.offheight = max(view.offwidth, width), max(view.offheight, height)
        try:
            renderer = mujoco.Renderer(self._model, height, width)
        except Exception as error:  # each backend has its own exceptions
            raise UserError(display_error_message(error), key="MUJOCO_GL") from error
        _close_before_others()
        self._renderers[width, height] = renderer
        return renderer


def _free(renderer: Any) -> None:
    # In this order: MuJoCo frees by number in whichever context is current, which could be another camera's.
    # MuJoCo 2.3 has no public way to free, and MuJoCo 3's own does not make the context current.
    renderer._gl_context.make_current()
    renderer._mjr_context.free()
    renderer._gl_context.free()
    renderer._gl_context = renderer._mjr_context = None


def _close_before_others() -> None:
    """Have all contexts freed before whoever came in between, dm_control or MuJoCo 3, ends the display at exit."""
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    for cameras in list(_every):
        cameras.close()
