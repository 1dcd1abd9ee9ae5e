"""Where decoded frames are kept, by the memory that is free."""

from pathlib import Path
from typing import Literal

import torch

from robolearn.data.video.frame_cache import gigabytes
from robolearn.errors import UserError

Tier = Literal["gpu", "host", "disk"]


def free_host_memory() -> int:
    """Bytes of main memory that this process may still take, within the limit of its control group."""
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        group = Path("/sys/fs/cgroup")
        if (group / limit).is_file() and (group / used).is_file():
            allowed = (group / limit).read_text().strip()
            if allowed.isdigit():
                free.append(max(int(allowed) - int((group / used).read_text()), 0))
    return min(free, default=8 * 10**9)


def free_device_memory(device: torch.device) -> int:
    """Bytes free on an accelerator; on one that shares the main memory, bytes free there."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()


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
