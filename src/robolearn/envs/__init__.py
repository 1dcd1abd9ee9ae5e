"""Simulators, as gymnasium vector environments whose observations carry dataset keys."""

from robolearn.envs.pusht import PushT
from robolearn.envs.simulator import Simulator, check_same_spec

__all__ = ["PushT", "Simulator", "check_same_spec"]
