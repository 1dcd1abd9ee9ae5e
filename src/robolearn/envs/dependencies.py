"""What simulators stand on, Python packages and system libraries, and the command that gets what is missing."""

import contextlib
import importlib
import importlib.util
import multiprocessing
import os
import re
import sys
from collections.abc import Mapping

from robolearn.errors import UserError, describe_exception

EGL = "libegl1 libegl-mesa0 libgl1-mesa-dri"

SYSTEM_PACKAGES = {
    "libGL": "libgl1 libglib2.0-0",
    "libglib": "libgl1 libglib2.0-0",
    "libgthread": "libgl1 libglib2.0-0",
    "libEGL": EGL,
    "libOSMesa": "libosmesa6",
    "libSDL2": "libsdl2-2.0-0",
    "libX11": "libx11-6",
    "libXext": "libxext6",
}
"""Debian's and Ubuntu's packages of the libraries that simulators load, by the library's name."""

PIP = {"gymnasium_robotics": "gymnasium-robotics"}
"""What to give ``pip install``, where it is not the import's name with dashes."""
# Their metadata asks for what has no wheels for these Pythons, MuJoCo 2 and labmaze, but they work without it.
if sys.version_info >= (3, 12):
    PIP["gym_xarm"] = "--no-deps gym-xarm"
if sys.version_info >= (3, 13):
    PIP["gym_aloha"] = PIP["dm_control"] = "--no-deps gym-aloha dm-control==1.0.41"


def import_package(package: str | None, environ: Mapping[str, str]) -> None:
    """Import what registers a simulator, with the environment variables that it needs set where they are not.

    Raises:
        UserError: It, or something under it, is missing.
    """
    for name, value in environ.items():
        os.environ.setdefault(name, value)
    _load_triton()
    if package is None:
        return
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise UserError(missing(error, package), key="env.package") from error
    except Exception as error:
        # PyOpenGL without its library: an AttributeError of None, deep inside.
        if not is_display_error(error):
            raise
        raise UserError(display_error_message(error), key="MUJOCO_GL") from error


def _load_triton() -> None:
    # Mesa's OpenGL, which MuJoCo loads, brings an LLVM with which Triton crashes when it is imported after it, as torch
    # does when it first needs it. Worker processes have no torch.
    if multiprocessing.parent_process() is None and importlib.util.find_spec("triton"):
        with contextlib.suppress(ImportError):
            importlib.import_module("triton")


def missing(error: Exception, package: str | None) -> str:
    """The sentence for an import that failed."""
    library = re.search(r"(lib[\w+-]+)[\w.]*: cannot open shared object", str(error))
    if library:
        names = (p for name, p in SYSTEM_PACKAGES.items() if library[1].startswith(name))
        packages = next(names, None)
        way = f"apt-get install -y {packages}" if packages else f"install the package that holds {library[1]}"
        return f"The simulator {package} needs the system library {library[1]}, which is not here: {way}"
    module = getattr(error, "name", None) or package or ""
    if isinstance(error, ModuleNotFoundError):
        name = module.split(".")[0]
        own = ", or add its folder to PYTHONPATH (env.package)" if name == package and name not in PIP else ""
        pip = f"pip install {PIP.get(name, name.replace('_', '-'))}"
        return f"The simulator needs the Python package {name}, which is not installed: {pip}{own}"
    if is_display_error(error):
        return display_error_message(error)
    return f"The simulator's package {package} can't be imported: {describe_exception(error)}."


def display_error_message(error: BaseException) -> str:
    """The sentence for MuJoCo without a way to render, by the backend that MUJOCO_GL chose."""
    backend = os.environ.get("MUJOCO_GL", "").lower()
    if backend == "egl":
        way = f"apt-get install -y {EGL}"
    elif backend == "osmesa":
        way = "apt-get install -y libosmesa6"
    else:
        way = f"set MUJOCO_GL=egl (apt-get install -y {EGL})"
    return f"MuJoCo can't render here with MUJOCO_GL={backend or 'unset'}: {way} ({describe_exception(error)})."


def is_display_error(error: BaseException) -> bool:
    """Whether an exception comes from OpenGL that cannot be had here, such as PyOpenGL's AttributeError of None."""
    text = f"{type(error).__module__} {error}"
    return re.search(r"\begl|EGL|OSMesa|OpenGL|glGet|glfw|MUJOCO_GL", text) is not None
