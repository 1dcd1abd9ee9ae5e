"""LeRobot's config.json and processor files in our terms; nothing here imports torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from robolearn.errors import UserError, did_you_mean
from robolearn.system.paths import conf_dir
from robolearn.types import kind_of

KINDS = ("act", "diffusion", "pi0", "tdmpc", "vqbet")
"""LeRobot's types of policies that can be read; each is also the name of an option of the group policy."""

# Fields that say nothing about what a policy computes, or belong to optimizer, schedule and features here.
IGNORED_FIELDS = re.compile(
    r"type|input_features|output_features|normalization_mapping|optimizer_.*|scheduler_.*|device|use_amp"
    r"|mlp_hidden_dim|push_to_hub|repo_id|private|tags|license|pretrained_path|pretrained_revision"
    r"|compile_model|compile_mode|crop_ratio|pretrained_backbone_weights|gradient_checkpointing"
)
# Fields whose other values are not supported here.
FIXED: dict[str, Any] = {"resize_shape": None, "use_peft": False, "rtc_config": None}

# What the weights were made for and shows when acting, so that a checkpoint acts as it does at LeRobot.
INFERENCE_OVERRIDES: dict[str, dict[str, Any]] = {
    "diffusion": {"final_n_groups": 8},
    "pi0": {"loss_over_padded_dims": True},  # its noise has no zeros either
    "tdmpc": {"q_draws_with_replacement": True, "warm_start_shift": 1},
}

# The options of the groups optimizer and scheduler that LeRobot's presets change.
PRESETS = {
    "act": ("adamw", "constant"),
    "diffusion": ("adam", "diffusers"),
    "pi0": ("adamw", "cosine_decay_with_warmup"),
    "tdmpc": ("adam", "constant"),
    "vqbet": ("adam", "vqbet"),
}
SCHEDULES = {
    "diffusion": {"scheduler_name": "name", "scheduler_warmup_steps": "num_warmup_steps"},
    "vqbet": {"scheduler_warmup_steps": "num_warmup_steps"},
    "pi0": {
        "scheduler_warmup_steps": "num_warmup_steps",
        "scheduler_decay_steps": "num_decay_steps",
        "scheduler_decay_lr": "decay_lr",
        "optimizer_lr": "peak_lr",
    },
}

MODES = ("MEAN_STD", "MIN_MAX", "IDENTITY")
# In 2024 config.json told no type; what only one of them had.
TYPE_MARKERS = {
    "act": "n_vae_encoder_layers",
    "diffusion": "down_dims",
    "tdmpc": "cem_iterations",
    "vqbet": "vqvae_n_embed",
}

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
# Steps that move, batch or tokenise what is done elsewhere here; the last two where they are switched off.
STEPS = {"to_batch_processor", "device_processor", "normalizer_processor", "unnormalizer_processor"}
STEPS |= {"rename_observations_processor", "tokenizer_processor", "pi0_new_line_processor"}
OPTIONAL_STEPS = {"relative_actions_processor", "absolute_actions_processor", "delta_actions_processor"}


def read(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json, brought to the form of February 2025.

    Raises:
        UserError: It is not there, not readable, or of a policy that is not supported.
    """
    file = folder / "config.json"
    config = _json(file)
    if "input_shapes" in config:
        config = _from_2024(file, config)
    kind = config.get("type")
    if kind not in KINDS:
        raise UserError(
            f"{file}: policies of LeRobot's type '{kind}' cannot be read{did_you_mean(str(kind), KINDS)}; "
            f"those that can: {', '.join(KINDS)}."
        )
    if "paligemma_variant" in config:
        raise UserError(
            f"{file}: LeRobot's pi0 from 0.4 on is another implementation, whose weights cannot be read yet; "
            "take a checkpoint of the one before."
        )
    for name in ("input_features", "output_features"):
        _check_features(file, name, config.get(name))
    if "action" not in config["output_features"]:
        raise UserError(f"{file}: output_features has no 'action', so nothing is known to command.")
    mapping = {**(config.get("normalization_mapping") or {}), **_processed_mapping(folder)}
    for name, mode in mapping.items():
        if mode not in MODES:
            raise UserError(f"{file}: {name} is normalised by {mode}, which is none of {', '.join(MODES)}.")
    return {**config, "normalization_mapping": mapping} if mapping else config


def policy_options(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """The keys of our policy that a config.json of LeRobot sets; its architecture is that of the published weights.

    Args:
        config: What `read` gave.
        where: The file, for messages.

    Raises:
        UserError: A field is unknown, or has a value that is not supported here.
    """
    kind = config["type"]
    known = yaml.safe_load((conf_dir() / "policy" / f"{kind}.yaml").read_text())["policy"]
    options = {key: value for key, value in config.items() if not IGNORED_FIELDS.fullmatch(key) and key not in FIXED}
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{where}: {key}={json.dumps(config[key])} is not supported; only {json.dumps(value)} is.")
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UserError(
            f"{where}: {unknown[0]}={json.dumps(options[unknown[0]])} is no field of LeRobot's {kind} that is known "
            f"here{did_you_mean(unknown[0], known)}; remove it from the file if the policy does not depend on it."
        )
    if options.get("drop_n_last_frames") == 7:  # LeRobot's constant, right for its default lengths alone
        options["drop_n_last_frames"] = None
    if mapping := config.get("normalization_mapping"):
        options["normalization_mapping"] = {k: mapping.get(k, "IDENTITY") for k in ("VISUAL", "STATE", "ENV", "ACTION")}
    return {**options, **INFERENCE_OVERRIDES.get(kind, {})}


def optimizer_options(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The keys of the optimizer and those of its parameter groups; empty where config.json tells none."""
    names = ("lr", "betas", "eps", "weight_decay")
    options = {name: config[f"optimizer_{name}"] for name in names if f"optimizer_{name}" in config}
    groups: dict[str, dict[str, Any]] = {}
    if "optimizer_lr_backbone" in config:
        groups["backbone"] = {"lr": config["optimizer_lr_backbone"]}
    if "optimizer_vqvae_lr" in config:
        tokenizer = {"lr": config["optimizer_vqvae_lr"], "weight_decay": config["optimizer_vqvae_weight_decay"]}
        groups |= {"no_decay": {"weight_decay": 0.0}, "tokenizer": tokenizer}
    return options, groups


def scheduler_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the schedule; empty where config.json tells none."""
    names = SCHEDULES.get(config["type"], {})
    return {ours: config[theirs] for theirs, ours in names.items() if theirs in config}


def statistics_files(folder: Path) -> list[Path]:
    """The files with statistics that a folder's processors name; none before LeRobot 0.4.

    Raises:
        UserError: A processor does what is not supported here, or its file is missing.
    """
    files = []
    for step in _steps(folder):
        if "normalizer_processor" in step["registry_name"] and (name := step.get("state_file")):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name} is missing, which holds the statistics of the checkpoint.")
            files.append(folder / name)
    return files


def _steps(folder: Path) -> list[dict[str, Any]]:
    steps = []
    for file in (folder / PREPROCESSOR, folder / POSTPROCESSOR):
        for step in _json(file).get("steps", []) if file.is_file() else []:
            name, options = step.get("registry_name") or step.get("class"), step.get("config") or {}
            if name not in STEPS and not (name in OPTIONAL_STEPS and not options.get("enabled", True)):
                raise UserError(f"{file}: the step '{name}' changes what the policy sees and is not supported here.")
            if options.get("rename_map"):
                raise UserError(
                    f"{file}: it renames {', '.join(options['rename_map'])}, which is not supported here; "
                    "empty its rename_map and name the keys in env.features_map."
                )
            if options.get("eps", 1e-8) != 1e-8:
                raise UserError(f"{file}: {name} has eps={options['eps']}; only 1e-8 is supported.")
            steps.append({**step, "registry_name": name})
    return steps


def _processed_mapping(folder: Path) -> dict[str, str]:
    """How the preprocessor normalises, which is what LeRobot goes by where there is one."""
    maps = [(step.get("config") or {}).get("norm_map") for step in _steps(folder)]
    return next((mapping for mapping in maps if mapping), {})


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file} is missing; give a folder with config.json and model.safetensors.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable JSON: {' '.join(str(error).split()).rstrip('.')}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no configuration: it holds no mapping.")
    return content


def _check_features(file: Path, name: str, features: Any) -> None:
    if not isinstance(features, dict) or not features:
        raise UserError(f"{file}: {name} names no feature, so what the policy was made for is unknown.")
    for key, feature in features.items():
        if not isinstance(feature, dict) or not {"type", "shape"} <= feature.keys():
            raise UserError(f"{file}: {name}.{key} needs 'type' and 'shape'.")


def _from_2024(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Bring a config.json of 2024, with shapes and modes by key and without a type, to the later form."""
    policy_type = next((name for name, marker in TYPE_MARKERS.items() if marker in config), None)
    new = {key: value for key, value in config.items() if not re.fullmatch(r"(input|output)_\w+(shapes|modes)", key)}
    new = {key: value for key, value in new.items() if key not in ("input_shapes", "output_shapes")}
    shapes = {**config["input_shapes"], **config.get("output_shapes", {})}
    features = {key: {"type": kind_of(key), "shape": shape} for key, shape in shapes.items()}
    new["type"] = config.get("type", policy_type)
    new["output_features"] = {"action": features.pop("action")} if "action" in features else {}
    new["input_features"] = features
    modes = {**config.get("input_normalization_modes", {}), **config.get("output_normalization_modes", {})}
    mapping: dict[str, str] = {}
    for key, mode in modes.items():
        if mapping.setdefault(kind_of(key), mode.upper()) != mode.upper():
            raise UserError(
                f"{file}: features of the kind {kind_of(key)} are normalised in two ways; one is supported."
            )
    new["normalization_mapping"] = mapping
    return new
