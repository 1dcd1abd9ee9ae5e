"""Scripts that demonstrate a task with the simulator's full state in sight; no learning."""

from robolearn.demonstrators.aloha_insertion import AlohaInsertionDemonstrator
from robolearn.demonstrators.aloha_transfer_cube import AlohaTransferCubeDemonstrator
from robolearn.demonstrators.base import Demonstrator
from robolearn.demonstrators.pusht import PushTDemonstrator
from robolearn.demonstrators.xarm import XarmLiftDemonstrator

__all__ = [
    "AlohaInsertionDemonstrator",
    "AlohaTransferCubeDemonstrator",
    "Demonstrator",
    "PushTDemonstrator",
    "XarmLiftDemonstrator",
]
