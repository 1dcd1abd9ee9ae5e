"""LeRobot's config.json and processor files as nodes of our configuration; nothing here imports torch."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robolearn.checkpoints.lerobot.registry import default_options, get_interop, kinds
from robolearn.errors import UserError, did_you_mean, one_line
from robolearn.types import kind_of

# Fields that do not change what a policy computes, or belong to optimizer, schedule and features here.
IGNORED_FIELDS = re.compile(
    r"type|input_features|output_features|normalization_mapping|optimizer_.*|scheduler_.*|device|use_amp"
    r"|push_to_hub|repo_id|private|tags|license|pretrained_path|pretrained_revision"
    r"|compile_model|compile_mode|pretrained_backbone_weights"
)
# Fields whose other values are not supported here.
FIXED: dict[str, Any] = {"resize_shape": None, "use_peft": False, "rtc_config": None}

MODES = ("MEAN_STD", "MIN_MAX", "IDENTITY")
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
# Steps that move, batch or tokenise, which is done elsewhere here; the optional ones are supported when disabled only.
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
    for name, reason in get_interop(config.get("type", ""), str(file)).unsupported_fields.items():
        if name in config:
            raise UserError(f"{file}: {reason}", key=name)
    for name in ("input_features", "output_features"):
        _check_features(file, name, config.get(name))
    if "action" not in config["output_features"]:
        raise UserError(f"{file}: output_features has no 'action', so the policy has no action.", key="output_features")
    mapping = {**(config.get("normalization_mapping") or {}), **_processed_mapping(folder)}
    for name, mode in mapping.items():
        if mode not in MODES:
            raise UserError(
                f"{file}: {name} is normalised by {mode}, which is none of {', '.join(MODES)}.",
                key="normalization_mapping",
            )
    return {**config, "normalization_mapping": mapping} if mapping else config


def policy_options(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """The keys of the node ``policy`` that a config.json of LeRobot sets, with those that LeRobot has no field for.

    Args:
        config: What `read` gave.
        where: The file, for messages.

    Raises:
        UserError: A field is unknown, or has a value that is not supported here.
    """
    kind = config["type"]
    interop, known = get_interop(kind), default_options("policy", kind)
    dropped = FIXED.keys() | interop.ignored_fields
    options = {key: value for key, value in config.items() if not IGNORED_FIELDS.fullmatch(key) and key not in dropped}
    for key, value in FIXED.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{where}: {key}={json.dumps(config[key])} is not supported; only {json.dumps(value)} is.", key=key
            )
    unknown = [key for key in options if key not in known]
    if unknown:
        raise UserError(
            f"{where}: {unknown[0]}={json.dumps(options[unknown[0]])} is no field of LeRobot's {kind} that is known "
            f"here{did_you_mean(unknown[0], known)}; remove it from the file if the policy does not depend on it.",
            key=unknown[0],
        )
    if options.get("drop_n_last_frames") == 7:  # LeRobot's constant, right for its default lengths alone
        options["drop_n_last_frames"] = None
    if mapping := config.get("normalization_mapping"):
        options["normalization_mapping"] = {k: mapping.get(k, "IDENTITY") for k in ("VISUAL", "STATE", "ENV", "ACTION")}
    return {**options, **interop.inference_overrides}


def checkpoint_nodes(folder: Path) -> dict[str, Any]:
    """What a folder of LeRobot's says of its policy and training, as nodes of our configuration.

    Returns:
        ``kind``, ``policy``, and where config.json has them ``optimizer``, ``param_groups``, ``scheduler`` and
        ``grad_clip_norm``; each node holds only what differs from our configuration files.

    Raises:
        UserError: config.json is not readable, or has what is not supported.
    """
    config = read(folder)
    interop = get_interop(config["type"])
    policy = policy_options(config, str(folder / "config.json")) | interop.checkpoint_options(folder)
    nodes: dict[str, Any] = {"kind": config["type"], "policy": policy}
    names = ("lr", "betas", "eps", "weight_decay")
    if optimizer := {name: config[f"optimizer_{name}"] for name in names if f"optimizer_{name}" in config}:
        groups = {name: dict(options) for name, options in interop.param_groups.items()}
        for theirs, (group, key) in interop.param_group_fields.items():
            if theirs in config:
                groups.setdefault(group, {})[key] = config[theirs]
        nodes |= {"optimizer": optimizer, "param_groups": groups}
    if scheduler := {ours: config[theirs] for theirs, ours in interop.scheduler_keys.items() if theirs in config}:
        nodes["scheduler"] = scheduler
    if "optimizer_grad_clip_norm" in config:
        nodes["grad_clip_norm"] = config["optimizer_grad_clip_norm"]
    return nodes


def statistics_files(folder: Path) -> list[Path]:
    """The files with statistics that a folder's processors name; none before LeRobot 0.4.

    Raises:
        UserError: A step of a processor is not supported, or its file is missing.
    """
    files = []
    for step in _steps(folder):
        if "normalizer_processor" in step["registry_name"] and (name := step.get("state_file")):
            if not (folder / name).is_file():
                raise UserError(
                    f"{folder / name} is missing, which holds the statistics of the checkpoint.", key=str(folder / name)
                )
            files.append(folder / name)
    return files


def _steps(folder: Path) -> list[dict[str, Any]]:
    steps = []
    for file in (folder / PREPROCESSOR, folder / POSTPROCESSOR):
        for step in _json(file).get("steps", []) if file.is_file() else []:
            name, options = step.get("registry_name") or step.get("class"), step.get("config") or {}
            if name not in STEPS and not (name in OPTIONAL_STEPS and not options.get("enabled", True)):
                raise UserError(
                    f"{file}: the step '{name}' changes what the policy observes and is not supported here.", key=name
                )
            if options.get("rename_map"):
                raise UserError(
                    f"{file}: it renames {', '.join(options['rename_map'])}, which is not supported here",
                    key="rename_map",
                    fix="empty its rename_map and name the keys in env.features_map",
                )
            if options.get("eps", 1e-8) != 1e-8:
                raise UserError(f"{file}: {name} has eps={options['eps']}; only 1e-8 is supported.", key="eps")
            steps.append({**step, "registry_name": name})
    return steps


def _processed_mapping(folder: Path) -> dict[str, str]:
    """The preprocessor's normalisation by feature type, which precedes that of config.json; empty without one."""
    maps = [(step.get("config") or {}).get("norm_map") for step in _steps(folder)]
    return next((mapping for mapping in maps if mapping), {})


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{file} is missing; give a folder with config.json and model.safetensors.", key=str(file)
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is not readable JSON: {one_line(error)}.", key=str(file)) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is no configuration: it holds no mapping.", key=str(file))
    return content


def _check_features(file: Path, name: str, features: Any) -> None:
    if not isinstance(features, dict) or not features:
        raise UserError(f"{file}: {name} names no feature, so what the policy was made for is unknown.", key=name)
    for key, feature in features.items():
        if not isinstance(feature, dict) or not {"type", "shape"} <= feature.keys():
            raise UserError(f"{file}: {name}.{key} needs 'type' and 'shape'.", key=f"{name}.{key}")


def _from_2024(file: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Convert a config.json of 2024, with shapes and modes by key and without a type, to the later form."""
    kind = next((kind for kind in kinds() if get_interop(kind).type_marker in config), None)
    new = {key: value for key, value in config.items() if not re.fullmatch(r"(input|output)_\w+(shapes|modes)", key)}
    new = {key: value for key, value in new.items() if key not in ("input_shapes", "output_shapes")}
    shapes = {**config["input_shapes"], **config.get("output_shapes", {})}
    features = {key: {"type": kind_of(key), "shape": shape} for key, shape in shapes.items()}
    new["type"] = config.get("type", kind)
    new["output_features"] = {"action": features.pop("action")} if "action" in features else {}
    new["input_features"] = features
    modes = {**config.get("input_normalization_modes", {}), **config.get("output_normalization_modes", {})}
    mapping: dict[str, str] = {}
    for key, mode in modes.items():
        feature = kind_of(key)
        if mapping.setdefault(feature, mode.upper()) != mode.upper():
            raise UserError(
                f"{file}: features of the type {feature} are normalised in two ways; one is supported.", key=key
            )
    new["normalization_mapping"] = mapping
    return new
