"""Scripts that demonstrate a task with the simulator's full state in sight; no learning."""

from robolearn.collecting.experts.aloha_insertion import AlohaInsertionDemonstrator
from robolearn.collecting.experts.aloha_transfer_cube import AlohaTransferCubeDemonstrator
from robolearn.collecting.experts.expert import Demonstrator
from robolearn.collecting.experts.pusht_expert import PushTDemonstrator
from robolearn.collecting.experts.xarm_expert import XarmLiftDemonstrator

__all__ = [
    "AlohaInsertionDemonstrator",
    "AlohaTransferCubeDemonstrator",
    "Demonstrator",
    "PushTDemonstrator",
    "XarmLiftDemonstrator",
]
