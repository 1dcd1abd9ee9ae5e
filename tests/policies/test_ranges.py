"""The ranges of the policies' options, which the check of a configuration reads from their constructors."""

import math
from typing import Any

import pytest

from robolearn.config.validate import check_targets
from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy
from robolearn.policies.diffusion import DiffusionPolicy
from robolearn.policies.pi0 import Pi0Policy
from robolearn.policies.tdmpc import TdmpcPolicy
from robolearn.policies.vqbet import VqbetPolicy

OUT_OF_RANGE: list[tuple[type[Policy], dict[str, list[Any]]]] = [
    (ActPolicy, dict.fromkeys(["chunk_size", "n_action_steps", "dim_model", "n_heads", "dim_feedforward"], [0])),
    (ActPolicy, dict.fromkeys(["n_encoder_layers", "n_decoder_layers", "n_vae_encoder_layers", "latent_dim"], [0])),
    (ActPolicy, {"temporal_ensemble_coeff": [math.nan, math.inf], "dropout": [1.0, -0.1], "kl_weight": [-1.0]}),
    (DiffusionPolicy, dict.fromkeys(["n_obs_steps", "n_action_steps", "horizon", "n_groups", "final_n_groups"], [0])),
    (DiffusionPolicy, dict.fromkeys(["num_train_timesteps", "num_inference_steps", "kernel_size"], [0, -1])),
    (DiffusionPolicy, {"drop_n_last_frames": [-1], "down_dims": [[]], "diffusion_step_embed_dim": [2, 7]}),
    (DiffusionPolicy, {"clip_sample_range": [0.0], "spatial_softmax_num_keypoints": [0]}),
    (VqbetPolicy, {"n_obs_steps": [0], "vqvae_n_embed": [0], "n_vqvae_training_steps": [-1], "n_action_steps": [0]}),
    (VqbetPolicy, {"offset_loss_weight": [math.inf], "dropout": [1.0], "codebook_decay": [-0.1]}),
    (VqbetPolicy, {"bet_softmax_temperature": [0.0]}),
    (TdmpcPolicy, dict.fromkeys(["n_gaussian_samples", "n_action_steps", "n_action_repeats", "horizon"], [0])),
    (TdmpcPolicy, {"q_ensemble_size": [0], "n_pi_samples": [-1], "discount": [1.5], "warm_start_shift": [-1]}),
    (TdmpcPolicy, {"target_model_momentum": [-0.1], "max_random_shift_ratio": [-0.1], "max_std": [math.inf]}),
    (Pi0Policy, {"num_steps": [0], "empty_cameras": [-1], "proj_width": [0, 15]}),
    (Pi0Policy, {"attention_implementation": ["spda"], "dtype": ["float16"], "time_sampling": ["uniform"]}),
]
CASES = [
    (policy, name, value) for policy, options in OUT_OF_RANGE for name, values in options.items() for value in values
]


def keys(policy: type[Policy], **options: Any) -> list[str | None]:
    """The keys of the errors that the check of a configuration finds."""
    target = f"{policy.__module__}.{policy.__name__}"
    return [error.key for error in check_targets({"policy": {"_target_": target, "_partial_": True, **options}})]


@pytest.mark.parametrize(("policy", "name", "value"), CASES)
def test_a_value_out_of_range_is_refused_by_its_key(policy: type[Policy], name: str, value: Any) -> None:
    assert keys(policy, **{name: value}) == [f"policy.{name}"]


def test_the_elements_of_lists_and_mappings_have_ranges() -> None:
    assert keys(DiffusionPolicy, down_dims=[8, 0]) == ["policy.down_dims[1]"]
    assert keys(DiffusionPolicy, crop_shape=[0, 64]) == ["policy.crop_shape[0]"]
    assert keys(Pi0Policy, language={"hidden_size": 0}) == ["policy.language.hidden_size"]


@pytest.mark.parametrize("policy", [ActPolicy, DiffusionPolicy, Pi0Policy, TdmpcPolicy, VqbetPolicy])
def test_null_and_smallest_values_are_allowed(policy: type[Policy]) -> None:
    smallest: dict[type[Policy], dict[str, Any]] = {
        ActPolicy: {"chunk_size": 1, "dropout": 0, "temporal_ensemble_coeff": -0.5},
        DiffusionPolicy: {"final_n_groups": None, "num_inference_steps": 1, "drop_n_last_frames": 0},
        Pi0Policy: {"empty_cameras": 0, "resize_imgs_with_padding": None},
        TdmpcPolicy: {"discount": 1, "n_pi_samples": 0, "warm_start_shift": None},
        VqbetPolicy: {"focal_loss_gamma": 0, "crop_shape": None},
    }
    assert keys(policy, **smallest[policy]) == []
