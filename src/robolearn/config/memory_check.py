"""Whether a run's weights and batches can be had on this machine at all."""

import math

from robolearn.config.compose import Job
from robolearn.config.devices import pick_device
from robolearn.data.video.frame_cache import gigabytes
from robolearn.errors import UserError
from robolearn.policies.base import Policy
from robolearn.system.memory import free_device_memory, free_host_memory
from robolearn.types import Spec, Window


def check_memory(job: Job, policy: Policy, spec: Spec) -> None:
    """Refuse weights and batches that memory certainly lacks, before anything is allocated.

    Args:
        job: What will run here.
        policy: Without memory for its weights.
        spec: The dataset's features.

    Raises:
        UserError: The weights alone, or the tensors of a batch alone, are larger than the memory that is free.
    """
    free = free_device_memory(pick_device(job.cfg.device))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in policy.parameters())
    if weights > free:
        given = [text for text in job.overrides if text.lstrip("+").startswith("policy.")]
        raise UserError(
            f"policy{f' ({chr(32).join(given)})' if given else ''}: its weights alone take {gigabytes(weights)}, and "
            f"{gigabytes(free)} of memory are free",
            key="policy",
            fix="choose smaller sizes",
        )
    free = min(free, free_host_memory())
    size = sample_bytes(spec, policy.spec.window)
    if job.cfg.batch_size * size > free:
        raise UserError(
            f"batch_size={job.cfg.batch_size}: a batch takes {gigabytes(job.cfg.batch_size * size)}, and "
            f"{gigabytes(free)} of memory are free",
            key="batch_size",
            fix=f"give at most {max(1, free // (4 * size))}",
        )


def sample_bytes(spec: Spec, window: Window) -> int:
    """Bytes of one sample: uint8 images, and float32 observations and actions, with their windows."""
    frame = sum(math.prod(one.shape) * (1 if one.is_image else 4) for one in spec.observation.values())
    return frame * len(window.observation) + 4 * math.prod(spec.action.shape) * len(window.action)
