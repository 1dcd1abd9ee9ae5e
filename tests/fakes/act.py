"""An ACT policy of a few thousand weights."""

from typing import Any

from robolearn.policies.act import ActPolicy
from robolearn.types import Spec

SIZES: dict[str, Any] = {
    "chunk_size": 6,
    "n_action_steps": 4,
    "dim_model": 16,
    "n_heads": 2,
    "dim_feedforward": 24,
    "n_encoder_layers": 1,
    "n_vae_encoder_layers": 1,
    "latent_dim": 5,
    "dropout": 0.0,
}


def act(of: Spec, **options: Any) -> ActPolicy:
    """The tiny sizes, with some options changed."""
    return ActPolicy(of, **(SIZES | options))
