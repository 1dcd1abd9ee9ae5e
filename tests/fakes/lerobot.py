"""Folders as LeRobot publishes them, small, their weights by a rule that depends on names."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from robolearn.checkpoints.lerobot import weights

FEATURES = {
    "input_features": {
        "observation.image": {"type": "VISUAL", "shape": [3, 96, 96]},
        "observation.state": {"type": "STATE", "shape": [2]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
}
MEAN_STD = dict.fromkeys(["VISUAL", "STATE", "ACTION"], "MEAN_STD")
MIN_MAX = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
SMALL: dict[str, dict[str, Any]] = {
    "act": {"dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "latent_dim": 4, "chunk_size": 8}
    | {"n_action_steps": 4, "n_encoder_layers": 1, "n_vae_encoder_layers": 1, "normalization_mapping": MEAN_STD}
    | {"pretrained_backbone_weights": "ResNet18_Weights.IMAGENET1K_V1", "optimizer_lr": 2e-5}
    | {"optimizer_weight_decay": 2e-4, "optimizer_lr_backbone": 3e-5},
    "diffusion": {"down_dims": [8, 16], "diffusion_step_embed_dim": 8, "spatial_softmax_num_keypoints": 4}
    | {"horizon": 8, "n_action_steps": 4, "num_inference_steps": 2, "drop_n_last_frames": 7}
    | {"normalization_mapping": MIN_MAX, "optimizer_lr": 2e-4, "optimizer_betas": [0.9, 0.99]}
    | {"optimizer_eps": 1e-7, "optimizer_weight_decay": 1e-5, "scheduler_name": "linear", "scheduler_warmup_steps": 3},
    "tdmpc": {"image_encoder_hidden_dim": 4, "state_encoder_hidden_dim": 8, "mlp_dim": 8, "latent_dim": 4}
    | {"n_gaussian_samples": 8, "n_pi_samples": 2, "n_elites": 3, "cem_iterations": 2, "optimizer_lr": 2e-4}
    | {"normalization_mapping": dict.fromkeys(["VISUAL", "STATE", "ENV"], "IDENTITY") | {"ACTION": "MIN_MAX"}},
    "vqbet": {"gpt_n_layer": 1, "gpt_n_head": 2, "gpt_hidden_dim": 8, "gpt_input_dim": 8, "gpt_output_dim": 8}
    | {"vqvae_embedding_dim": 4, "vqvae_enc_hidden_dim": 8, "spatial_softmax_num_keypoints": 4, "gpt_block_size": 30}
    | {"normalization_mapping": MIN_MAX | {"VISUAL": "IDENTITY"}, "mlp_hidden_dim": 1024, "optimizer_lr": 2e-4}
    | {"optimizer_betas": [0.9, 0.99], "optimizer_eps": 1e-7, "optimizer_weight_decay": 1e-5}
    | {"optimizer_vqvae_lr": 2e-3, "optimizer_vqvae_weight_decay": 2e-4, "scheduler_warmup_steps": 3},
}
LATER = {"device": "cuda", "use_amp": False, "use_peft": False, "push_to_hub": True, "repo_id": "me/x", "tags": None}
LATER |= {"private": None, "license": None, "pretrained_path": None, "pretrained_revision": None}


def config(kind: str, **options: Any) -> dict[str, Any]:
    """The config.json of a small policy for PushT."""
    return {
        "type": kind,
        "n_obs_steps": {"diffusion": 2, "vqbet": 2}.get(kind, 1),
        **SMALL[kind],
        **FEATURES,
        **options,
    }


def state(config: dict[str, Any]) -> dict[str, Tensor]:
    """Its state dict with statistics, each value by its name."""
    trained = {**config, "n_vqvae_training_steps": 0}
    published = weights.to_lerobot(config["type"], *weights.build(config), trained)
    return {name: by_rule(name, value) for name, value in published.items()}


def by_rule(name: str, value: Tensor) -> Tensor:
    """Noise that only the name and the shape decide; constants stay."""
    if not value.is_floating_point() or name.endswith((".pos_grid", ".pos_enc", ".attn.bias", ".initted")):
        return value
    # Twice in the file under two names.
    seed = zlib.crc32(name.replace("normalize_targets", "unnormalize_outputs").encode())
    noise = np.random.RandomState(seed).standard_normal(tuple(value.shape)).astype(np.float32)
    if ".buffer_" in name:
        noise = np.abs(noise) + {"min": -3, "max": 300}.get(name.rpartition(".")[2], 1)
    elif value.ndim > 1:
        noise = noise / np.sqrt(np.prod(value.shape) / value.shape[0])
    elif name.endswith((".running_var", ".weight")):
        noise = 1 + 0.1 * np.abs(noise)
    return torch.from_numpy(np.asarray(noise, np.float32))


def write(folder: Path, config: dict[str, Any], state: dict[str, Tensor] | None = None, later: bool = False) -> Path:
    """Write a folder in the layout of February 2025, or of 0.4 with statistics in processor files."""
    folder.mkdir(parents=True)
    weights = dict(globals()["state"](config) if state is None else state)
    if later:
        config = {k: v for k, v in config.items() if k != "mlp_hidden_dim"} | LATER
        features = {**config["input_features"], **config["output_features"]}
        keys = {key.replace(".", "_"): key for key in features}
        statistics = {}
        for name in [name for name in weights if ".buffer_" in name]:
            key, stat = name.split(".buffer_")[1].split(".")
            statistics[f"{keys[key]}.{stat}"] = weights.pop(name).clone()
        options = {"eps": 1e-8, "features": features, "norm_map": config["normalization_mapping"]}
        file = "policy_preprocessor_step_1_normalizer_processor.safetensors"
        step = {"registry_name": "normalizer_processor", "config": options, "state_file": file}
        steps = [{"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}, step]
        (folder / "policy_preprocessor.json").write_text(json.dumps({"name": "policy_preprocessor", "steps": steps}))
        save_file(statistics, folder / file)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
