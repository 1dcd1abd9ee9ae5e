"""Demonstrations: LeRobot datasets, the order of their frames, and threads that gather batches ahead."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robolearn.data.lerobot_dataset import LeRobotDataset
    from robolearn.data.loader import Loader
    from robolearn.data.multi_dataset import MultiDataset
    from robolearn.data.protocols import FrameDataset
    from robolearn.data.sampling import BatchSampler, WeightedSampler

__all__ = ["BatchSampler", "FrameDataset", "LeRobotDataset", "Loader", "MultiDataset", "WeightedSampler"]

_MODULES = {
    "LeRobotDataset": "lerobot_dataset",
    "Loader": "loader",
    "MultiDataset": "multi_dataset",
    "FrameDataset": "protocols",
    "BatchSampler": "sampling",
    "WeightedSampler": "sampling",
}


def __getattr__(name: str) -> Any:
    # Imported on use, since processes that record episodes must not import torch.
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
