"""VectorEnv, as gymnasium vector environments whose observations carry dataset keys."""

from robolearn.envs.aloha import Aloha
from robolearn.envs.factory import EnvFactory, check_same_spec
from robolearn.envs.pusht import PushT
from robolearn.envs.xarm import Xarm

__all__ = ["Aloha", "PushT", "EnvFactory", "Xarm", "check_same_spec"]
