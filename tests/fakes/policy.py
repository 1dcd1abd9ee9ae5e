"""A diffusion policy of a few thousand weights, and batches for any policy."""

from typing import Any

import torch

from robolearn.policies.base import Policy
from robolearn.policies.diffusion import DiffusionPolicy
from robolearn.types import Batch, Feature, Spec

STATE = {"observation.state": Feature("STATE", (3,))}
ENVIRONMENT = {"observation.environment_state": Feature("ENV", (4,))}
ACTION_DIM = 2

SIZES: dict[str, Any] = {
    "horizon": 8,
    "n_action_steps": 4,
    "down_dims": [8, 16],
    "n_groups": 4,
    "diffusion_step_embed_dim": 8,
    "num_train_timesteps": 10,
    "num_inference_steps": 2,
    "spatial_softmax_num_keypoints": 4,
    "crop_shape": [64, 64],
}


def spec(cameras: int = 0, state: bool = True, environment: bool = False, size: int = 72) -> Spec:
    """Features of a robot with some cameras of `size` x `size` pixels."""
    images = {f"observation.images.{i}": Feature("VISUAL", (3, size, size)) for i in range(cameras)}
    observation = images | (STATE if state else {}) | (ENVIRONMENT if environment else {})
    return Spec(observation, Feature("ACTION", (ACTION_DIM,)), 10.0)


def diffusion(of: Spec, **options: Any) -> DiffusionPolicy:
    """The tiny sizes, with some options changed."""
    return DiffusionPolicy(of, **(SIZES | options))


def batch(policy: Policy, of: Spec, size: int = 3, device: str = "cpu") -> Batch:
    """Seeded normalised tensors over the policy's window; the actions of the first sample end in padding."""
    generator = torch.Generator().manual_seed(5)
    frames, horizon = len(policy.spec.window.observation), len(policy.spec.window.action)
    tensors = {
        key: torch.rand((size, frames, *feature.shape), generator=generator) for key, feature in of.observation.items()
    }
    tensors["action"] = torch.rand((size, horizon, *of.action.shape), generator=generator) * 2 - 1
    tensors["action_is_pad"] = torch.zeros(size, horizon, dtype=torch.bool)
    tensors["action_is_pad"][0, -3:] = True
    return {key: value.to(device) for key, value in tensors.items()}
