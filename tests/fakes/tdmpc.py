"""A TD-MPC policy of a few thousand weights, and batches with rewards for it."""

from typing import Any

import torch

from fakes.policy import batch
from robolearn.policies.tdmpc.tdmpc import TdmpcPolicy
from robolearn.types import Batch, Spec

SIZES: dict[str, Any] = {
    "horizon": 4,
    "image_encoder_hidden_dim": 4,
    "state_encoder_hidden_dim": 8,
    "latent_dim": 6,
    "mlp_dim": 12,
    "cem_iterations": 3,
    "n_gaussian_samples": 10,
    "n_pi_samples": 3,
    "n_elites": 4,
}
CHUNK = {"n_action_repeats": 1, "n_action_steps": 3}


def tdmpc(of: Spec, **options: Any) -> TdmpcPolicy:
    """The tiny sizes, with some options changed; all weights are random, also those that start at 0."""
    torch.manual_seed(0)
    policy = TdmpcPolicy(of, **(SIZES | options))
    with torch.no_grad():
        for weights in policy.parameters():
            weights.add_(0.1 * torch.randn_like(weights))
    return policy


def reward_batch(policy: TdmpcPolicy, of: Spec, device: str = "cpu") -> Batch:
    """A batch with rewards, whose first sample ends in padding."""
    tensors = batch(policy, of, device=device)
    frames = len(policy.spec.window.observation)
    padded = torch.zeros(3, frames, dtype=torch.bool)
    padded[0, -3:] = True
    tensors |= {f"{key}_is_pad": padded.to(device) for key in of.observation}
    rewards = torch.rand(3, frames - 1, generator=torch.Generator().manual_seed(6))
    tensors["next.reward"] = rewards.to(device)
    tensors["next.reward_is_pad"] = tensors["action_is_pad"]
    return tensors
