"""How much memory is free, of the machine and of its accelerators."""

from pathlib import Path

import torch


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
