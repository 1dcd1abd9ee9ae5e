"""Where a run computes, and how: device, compilation, CUDA graphs."""

import logging
import os
import shutil

import torch
from omegaconf import DictConfig
from torch.optim import Optimizer

from robolearn.distributed.world import World
from robolearn.errors import UserError, did_you_mean
from robolearn.policies.base import Policy
from robolearn.system.paths import cache_dir
from robolearn.training.optim import is_capturable

log = logging.getLogger(__name__)


def pick_device(name: str | None, world: World | None = None) -> torch.device:
    """The device of a name, or the fastest one there is; processes that train together take a GPU each.

    Raises:
        UserError: No such device is here.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if world and world.size > 1 and cuda and name in (None, "cuda"):
        # SLURM may show a process its own GPU alone.
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    if name is None:
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cuda", "mps", "cpu") or (index and not index.isdigit()):
        raise UserError(
            f"device={name}: it is none of cuda, cuda:N, mps, cpu{did_you_mean(kind, ['cuda', 'mps', 'cpu'])}.",
            key="device",
        )
    if kind == "cuda" and not cuda:
        raise UserError(f"device={name}: no GPU is visible here; use device=cpu.", key="device")
    if kind == "mps" and not mps:
        raise UserError(f"device={name}: this machine has no Apple GPU; use device=cpu.", key="device")
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: only {torch.cuda.device_count()} GPUs are visible, counted from cuda:0.", key="device"
        )
    return torch.device(name)


def describe_device(device: torch.device) -> dict[str, str | None]:
    """What a run's record says of the device: its name, and the version of CUDA where that is used."""
    if device.type != "cuda":
        return {"name": device.type, "cuda": None}
    return {"name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}


def pick_compile(wanted: bool | None, device: torch.device) -> bool:
    """Whether losses are compiled.

    Raises:
        UserError: They shall be, and there is no C compiler, which compiled kernels need.
    """
    if wanted is None and device.type != "cuda":
        return False
    if wanted is False:
        return False
    if any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):
        # The default folder lies in /tmp, which does not outlive a job or a reboot.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
        return True
    reason = "no C compiler is here; install gcc, or set compile=false"
    if wanted:
        raise UserError(f"compile=true: {reason}.", key="compile")
    log.warning("The loss is not compiled and slower: %s.", reason)
    return False


def pick_cuda_graph(cfg: DictConfig, device: torch.device, policy: Policy, optimizer: Optimizer) -> bool | None:
    """Whether updates are captured: True where the user says so, None where they are if it works.

    Raises:
        UserError: They shall be, and cannot.
    """
    if cfg.cuda_graph is False:
        return False
    reasons = {
        f"device={device} is no CUDA GPU": device.type != "cuda",
        "amp_dtype=float16 looks at every gradient; use bfloat16": cfg.use_amp and cfg.amp_dtype == "float16",
        f"{type(optimizer).__name__} keeps its step on the host; use adamw": not is_capturable(optimizer),
        f"{type(policy).__name__} says that it cannot be captured": not policy.spec.capturable,
    }
    reason = next((text for text, holds in reasons.items() if holds), None)
    if reason and cfg.cuda_graph:
        raise UserError(f"cuda_graph=true: {reason}, or set cuda_graph=false.", key="cuda_graph")
    if reason and device.type == "cuda":
        log.warning("Updates run without a CUDA graph, and slower: %s.", reason)
    return False if reason else cfg.cuda_graph


def pick_acting_graph(wanted: bool | None, device: torch.device, policy: Policy) -> bool | None:
    """Whether predictions are captured: True where the user says so, None where they are if it works.

    Raises:
        UserError: They shall be, and cannot.
    """
    reasons = {
        f"device={device} is no CUDA GPU": device.type != "cuda",
        f"{type(policy).__name__} says that it cannot be captured": not policy.spec.capturable,
    }
    reason = next((text for text, holds in reasons.items() if holds), None)
    if reason and wanted:
        raise UserError(f"cuda_graph=true: {reason}, or set cuda_graph=false.", key="cuda_graph")
    return wanted


def use_fast_kernels(device: torch.device) -> None:
    """Trade bitwise repeatability on a GPU for speed: TF32 matrix products, and convolutions chosen by trying."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if device.index is not None and device.type == "cuda":
        torch.cuda.set_device(device)  # where graphs are captured
