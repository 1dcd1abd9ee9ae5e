"""Demonstrations: LeRobot datasets, the order of their frames, and threads that gather batches ahead."""

from robolearn.data.dataset import LeRobotDataset
from robolearn.data.loader import Loader
from robolearn.data.sampling import BatchSampler

__all__ = ["BatchSampler", "LeRobotDataset", "Loader"]
