"""Scripts that demonstrate a task with the simulator's full state in sight; no learning."""

from robolearn.demonstrators.base import Demonstrator

__all__ = ["Demonstrator"]
