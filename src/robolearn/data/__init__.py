"""Demonstrations: LeRobot datasets, the order of their frames, and threads that gather batches ahead."""

from robolearn.data.dataset import LeRobotDataset
from robolearn.data.loader import Loader
from robolearn.data.multi import MultiDataset
from robolearn.data.sampling import BatchSampler, WeightedSampler

__all__ = ["BatchSampler", "LeRobotDataset", "Loader", "MultiDataset", "WeightedSampler"]
