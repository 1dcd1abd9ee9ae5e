"""Checkpoints of this project in LeRobot's layout, for its releases of February 2025 and from 0.4 on at once.

Statistics are written twice: among the weights, where they were until 0.4 looked for them in processor files.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from robolearn.checkpoints.lerobot import config_json, weights
from robolearn.checkpoints.locate import WEIGHTS, is_lerobot_checkpoint, policy_node, read_run, tokenizer_steps
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.system.files import atomic_dir, write_json
from robolearn.types import Feature, Spec

log = logging.getLogger(__name__)

# Keys that LeRobot has no name for. Most change training alone; `_check_acts` tells of those that change actions.
OURS = {"_target_", "_partial_", "path", "average_over_padding", "crop_per_sample", "final_n_groups"}
OURS |= {"q_draws_with_replacement", "warm_start_shift", "gradient_per_layer", "sample_codes_in_training"}
OURS |= {"focal_loss_gamma", "commitment_loss_weight", "codebook_decay"}
OURS_OF = {
    "pi0": {"convert_statistics", "tokenizer", "pretrained_paligemma", "download", "dtype", "vision", "language"}
    | {"expert", "gradient_checkpointing", "do_mask_loss_for_padding", "loss_over_padded_dims", "time_sampling"},
    "vqbet": {"n_action_steps", "do_mask_loss_for_padding", "drop_n_last_frames"},
}

# Names that safetensors dropped when LeRobot saved, and under which other name the tensor is stored.
LANGUAGE = "model.paligemma_with_expert.paligemma.language_model"
TIED = {"pi0": {f"{LANGUAGE}.model.embed_tokens.weight": f"{LANGUAGE}.lm_head.weight"}}

OPTIMIZER = {
    "act": ("lr", "weight_decay"),
    "diffusion": ("lr", "betas", "eps", "weight_decay"),
    "pi0": ("lr", "betas", "eps", "weight_decay"),
    "tdmpc": ("lr",),
    "vqbet": ("lr", "betas", "eps", "weight_decay"),
}


def export(folder: Path, out: Path, policy: Policy, normalizer: Normalizer, spec: Spec) -> None:
    """Write a checkpoint in LeRobot's layout: all of the folder, or nothing.

    Args:
        folder: What `robolearn.checkpoints.locate.locate` found.
        out: Must not exist.
        policy: The checkpoint's policy, loaded.
        normalizer: And its normaliser.
        spec: What it observes and commands.

    Raises:
        UserError: LeRobot has no such policy, or cannot act as this one does.
    """
    if out.exists():
        raise UserError(f"{out} exists already; give a folder that does not.")
    kind = next((kind for kind, made in weights.POLICIES.items() if type(policy) is made), None)
    if kind is None:
        raise UserError(f"{folder}: LeRobot has no policy like {type(policy).__name__}.")
    node = policy_node(folder)
    _check_acts(kind, node)
    config = to_config_json(kind, node, policy, spec) | _training(kind, folder)
    tokenized = kind != "vqbet" or tokenizer_steps(folder, node["n_vqvae_training_steps"]) == 0
    separate = bool(node.get("use_separate_rgb_encoder_per_camera"))
    state = weights.to_lerobot(kind, policy, normalizer, tokenized, separate)
    with atomic_dir(out) as temporary:
        write_json(temporary / "config.json", config)
        save_file(state, temporary / WEIGHTS, {"format": "pt", **TIED.get(kind, {})})
        if kind != "pi0":  # LeRobot's from 0.4 on is another implementation, which reads no such weights
            _write_processors(temporary, config, normalizer, spec)


def to_config_json(kind: str, node: Mapping[str, Any], policy: Policy, spec: Spec) -> dict[str, Any]:
    """LeRobot's config.json of a node ``policy``, without optimizer and schedule."""
    left_out = OURS | OURS_OF.get(kind, set())
    options = {key: value for key, value in node.items() if key not in left_out}
    if "drop_n_last_frames" in options:
        options["drop_n_last_frames"] = policy.spec.drop_n_last_frames
    if "pretrained_backbone_weights" in options:  # they are among the weights by now
        options["pretrained_backbone_weights"] = None
    mapping = {k: str(mode) for k, mode in policy.spec.normalization_mapping.items()}
    features = {key: _feature(feature) for key, feature in spec.observation.items()}
    return {
        "type": kind,
        **options,
        "normalization_mapping": mapping,
        "input_features": features,
        "output_features": {"action": _feature(spec.action)},
    }


def _feature(feature: Feature) -> dict[str, Any]:
    return {"type": feature.kind, "shape": list(feature.shape)}


def _check_acts(kind: str, node: Mapping[str, Any]) -> None:
    if kind == "diffusion" and (groups := node.get("final_n_groups") or node.get("n_groups")) != 8:
        raise UserError(f"policy.final_n_groups={groups}: LeRobot always has 8 groups there; it has no such policy.")
    chunk = node.get("action_chunk_size")
    if kind == "vqbet" and node.get("n_action_steps") not in (None, chunk):
        log.warning("policy.n_action_steps=%s: LeRobot executes all %s.", node["n_action_steps"], chunk)
    if kind == "tdmpc" and node.get("warm_start_shift") != 1:
        log.warning("policy.warm_start_shift=%s: LeRobot's search does as with 1.", node.get("warm_start_shift"))


def _training(kind: str, folder: Path) -> dict[str, Any]:
    """The fields of optimizer and schedule, where LeRobot's preset is of the same kind."""
    if is_lerobot_checkpoint(folder):
        config = config_json.read(folder)
        return {k: v for k, v in config.items() if k.startswith(("optimizer_", "scheduler_"))}
    run, fields = read_run(folder), {}
    optimizer, schedule = config_json.PRESETS[kind]
    found = run.get("optimizer") or {}
    if str(found.get("_target_", "")).rpartition(".")[2].lower() == optimizer:
        fields = {f"optimizer_{name}": found[name] for name in OPTIMIZER[kind] if name in found}
        groups = run.get("param_groups") or {}
        if "lr" in groups.get("backbone", {}):
            fields["optimizer_lr_backbone"] = groups["backbone"]["lr"]
        if {"lr", "weight_decay"} <= groups.get("tokenizer", {}).keys():
            fields |= {f"optimizer_vqvae_{name}": groups["tokenizer"][name] for name in ("lr", "weight_decay")}
    found = run.get("scheduler") or {}
    if str(found.get("_target_", "")).rpartition(".")[2] == schedule:
        names = config_json.SCHEDULES.get(kind, {})
        fields |= {theirs: found[ours] for theirs, ours in names.items() if ours in found and "scheduler" in theirs}
    return fields


def _write_processors(folder: Path, config: Mapping[str, Any], normalizer: Normalizer, spec: Spec) -> None:
    keys = {key.replace(".", "_"): key for key in (*spec.observation, "action")}
    statistics = {}
    for name, value in normalizer.state_dict().items():
        _, key, statistic = name.split(".")
        statistics[f"{keys[key]}.{statistic}"] = value.cpu().contiguous()
    features = {**config["input_features"], **config["output_features"]}
    scales = {"eps": 1e-8, "features": features, "norm_map": config["normalization_mapping"]}
    device = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    before = [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        device,
        {"registry_name": "normalizer_processor", "config": scales},
    ]
    after = [
        {"registry_name": "unnormalizer_processor", "config": {**scales, "features": config["output_features"]}},
        device,
    ]
    for file, steps in ((config_json.PREPROCESSOR, before), (config_json.POSTPROCESSOR, after)):
        name = Path(file).stem
        for i, step in enumerate(steps):
            if "norm_map" in step["config"]:
                step["state_file"] = f"{name}_step_{i}_{step['registry_name']}.safetensors"
                save_file(statistics, folder / step["state_file"])
        write_json(folder / file, {"name": name, "steps": steps})
