"""Scripts that demonstrate a task with the simulator's full state in sight; no learning."""

from robolearn.demonstrators.base import Demonstrator
from robolearn.demonstrators.pusht import PushTDemonstrator

__all__ = ["Demonstrator", "PushTDemonstrator"]
