"""A VQ-BeT policy of a few thousand weights."""

from typing import Any

import torch

from fakes.policy import spec
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.types import Spec

CAMERA = spec(cameras=1)
SIZES: dict[str, Any] = {
    "n_obs_steps": 3,
    "n_action_pred_token": 2,
    "action_chunk_size": 3,
    "crop_shape": [64, 64],
    "spatial_softmax_num_keypoints": 4,
    "n_vqvae_training_steps": 2,
    "vqvae_n_embed": 5,
    "vqvae_embedding_dim": 6,
    "vqvae_enc_hidden_dim": 8,
    "gpt_block_size": 20,
    "gpt_input_dim": 8,
    "gpt_output_dim": 10,
    "gpt_n_layer": 2,
    "gpt_n_head": 2,
    "gpt_hidden_dim": 12,
}


def vqbet(of: Spec = CAMERA, step: int = 0, **options: Any) -> VqbetPolicy:
    """The tiny sizes, with some options changed, at one of the updates."""
    torch.manual_seed(0)
    policy = VqbetPolicy(of, **(SIZES | options))
    policy.before_step(step)
    return policy
