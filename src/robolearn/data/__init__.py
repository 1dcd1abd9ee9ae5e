"""Demonstrations: LeRobot datasets, the order of their frames, and threads that gather batches ahead."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robolearn.data.lerobot_dataset import LeRobotDataset
    from robolearn.data.loader import Loader
    from robolearn.data.multi_dataset import MultiDataset
    from robolearn.data.sampling import BatchSampler, WeightedSampler

__all__ = ["BatchSampler", "LeRobotDataset", "Loader", "MultiDataset", "WeightedSampler"]

_MODULES = {
    "LeRobotDataset": "lerobot_dataset",
    "Loader": "loader",
    "MultiDataset": "multi_dataset",
    "BatchSampler": "sampling",
    "WeightedSampler": "sampling",
}


def __getattr__(name: str) -> Any:
    # Imported on use: processes that record episodes need neither these nor torch.
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
