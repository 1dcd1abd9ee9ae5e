"""Checkpoints of this project in LeRobot's layout, which its releases of February 2025 and from 0.4 on read.

Statistics are written twice: among the weights, where they were until 0.4 looked for them in processor files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from robolearn.checkpoints.lerobot import config_json, weights
from robolearn.checkpoints.lerobot.registry import default_options, get_interop, policy_kind
from robolearn.checkpoints.locate import WEIGHTS, is_lerobot_checkpoint, policy_node, read_run
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.system.files import atomic_dir, write_json
from robolearn.types import Feature, Spec

# Keys of every policy that LeRobot has no field for.
OWN_KEYS = {"_target_", "_partial_", "path"}


def export(folder: Path, out: Path, policy: Policy, normalizer: Normalizer, spec: Spec) -> None:
    """Write a checkpoint in LeRobot's layout: all of the folder, or nothing.

    Args:
        folder: What `robolearn.checkpoints.locate.locate` found.
        out: Must not exist.
        policy: The checkpoint's policy, loaded.
        normalizer: The checkpoint's normaliser.
        spec: Its observation and action features.

    Raises:
        UserError: LeRobot has no such policy, or cannot act as this one does.
    """
    if out.exists():
        raise UserError(f"{out} exists already; give a folder that does not.", key=str(out))
    kind = policy_kind(policy)
    if kind is None:
        raise UserError(f"{folder}: LeRobot has no policy like {type(policy).__name__}.", key="policy")
    interop, node = get_interop(kind), policy_node(folder)
    interop.check_export(node)
    config = to_config_json(kind, node, policy, spec) | training_fields(kind, folder)
    state = weights.to_lerobot(kind, policy, normalizer, node)
    with atomic_dir(out) as temporary:
        write_json(temporary / "config.json", config)
        save_file(state, temporary / WEIGHTS, {"format": "pt", **interop.tied_weights})
        if interop.has_processors:
            _write_processors(temporary, config, normalizer, spec)


def to_config_json(kind: str, node: Mapping[str, Any], policy: Policy, spec: Spec) -> dict[str, Any]:
    """LeRobot's config.json of a node ``policy``, without optimizer and schedule."""
    own = OWN_KEYS | get_interop(kind).own_keys
    options = {key: value for key, value in node.items() if key not in own}
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


def training_fields(kind: str, folder: Path) -> dict[str, Any]:
    """The fields of optimizer and schedule, where they are of the same class and function as LeRobot's preset."""
    if is_lerobot_checkpoint(folder):
        config = config_json.read(folder)
        return {k: v for k, v in config.items() if k.startswith(("optimizer_", "scheduler_"))}
    run, interop, fields = read_run(folder), get_interop(kind), {}
    optimizer, scheduler = run.get("optimizer") or {}, run.get("scheduler") or {}
    if optimizer.get("_target_") == default_options("optimizer", interop.optimizer)["_target_"]:
        fields = {f"optimizer_{key}": optimizer[key] for key in interop.optimizer_keys if key in optimizer}
        groups = run.get("param_groups") or {}
        for theirs, (group, key) in interop.param_group_fields.items():
            if key in groups.get(group, {}):
                fields[theirs] = groups[group][key]
    if scheduler.get("_target_") == default_options("scheduler", interop.scheduler)["_target_"]:
        for theirs, ours in interop.scheduler_keys.items():
            if ours in scheduler and theirs.startswith("scheduler_"):
                fields[theirs] = scheduler[ours]
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
