"""Simulators, as gymnasium vector environments whose observations carry dataset keys."""

from robolearn.envs.aloha import Aloha
from robolearn.envs.factory import Simulator, check_same_spec
from robolearn.envs.pusht import PushT
from robolearn.envs.xarm import Xarm

__all__ = ["Aloha", "PushT", "Simulator", "Xarm", "check_same_spec"]
