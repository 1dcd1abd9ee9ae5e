"""TD-MPC: policy, world model and planner."""

from robolearn.policies.tdmpc.tdmpc import TdmpcPolicy

__all__ = ["TdmpcPolicy"]
