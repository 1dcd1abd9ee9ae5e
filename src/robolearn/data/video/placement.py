"""Where decoded frames are kept, by the memory that is free."""

from typing import Literal

import torch

from robolearn.data.video.frame_cache import gigabytes
from robolearn.errors import UserError
from robolearn.system.memory import free_device_memory, free_host_memory

Tier = Literal["gpu", "host", "disk"]


def choose_tier(
    wanted: Literal["auto", "gpu", "host", "disk"],
    size: int,
    device: torch.device,
    max_gpu_gb: float | None,
    max_host_gb: float | None,
) -> Tier:
    """Where to keep `size` bytes of decoded frames: the fastest memory that they may fill.

    Without a limit given, frames may fill a quarter of the device's free memory, which training needs more,
    or half of the free main memory.

    Raises:
        UserError: `wanted` is not available, or too small.
    """
    if wanted == "gpu" and device.type == "cpu":
        raise UserError(
            "dataset.cache=gpu needs a GPU, but device=cpu: use dataset.cache=auto, or device=cuda.",
            key="dataset.cache",
        )
    if wanted in ("gpu", "host"):
        free = free_device_memory(device) if wanted == "gpu" else free_host_memory()
        if size > free:
            raise UserError(
                f"dataset.cache={wanted} needs {gigabytes(size)} for the decoded frames, but {gigabytes(free)} "
                "are free there: use dataset.cache=auto or dataset.cache=disk.",
                key="dataset.cache",
            )
    if wanted != "auto":
        return wanted
    if device.type != "cpu":
        limit = free_device_memory(device) / 4 if max_gpu_gb is None else max_gpu_gb * 1e9
        if size <= limit:
            return "gpu"
    limit = free_host_memory() / 2 if max_host_gb is None else max_host_gb * 1e9
    return "host" if size <= limit else "disk"
