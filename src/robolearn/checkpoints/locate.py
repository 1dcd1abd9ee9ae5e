"""Folders of weights to start from or to evaluate: checkpoints of this project's runs, and LeRobot's.

Where they are and what they say of their policy; nothing here imports torch.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from robolearn.checkpoints.lerobot import config_json
from robolearn.errors import UserError
from robolearn.system.paths import conf_dir

WEIGHTS, CONFIG_YAML, CONFIG_JSON = "model.safetensors", "config.yaml", "config.json"

# What another run takes over of the one that made a checkpoint, beside the policy.
INHERITED_KEYS = ("optimizer", "scheduler", "param_groups", "use_ema", "ema", "grad_clip_norm")


def locate(key: str, path: str, download: bool = False) -> Path:
    """The folder that holds the weights of what a key names; no checksum is looked at.

    Args:
        key: For messages.
        path: A run's folder, one of its checkpoints, a folder of LeRobot's, or a hub id.
        download: Whether a hub id may be fetched.

    Raises:
        UserError: There is no such folder, or nothing in it.
    """
    given = Path(path).expanduser()
    if not given.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        given = _from_hub(key, path, download)
    places = (given, given / "last", given / "checkpoints" / "last")
    for folder in (*places, given / "pretrained_model", *(place / "pretrained_model" for place in places[1:])):
        if (folder / WEIGHTS).is_file() and ((folder / CONFIG_YAML).is_file() or (folder / CONFIG_JSON).is_file()):
            return folder.resolve()
    if not given.exists():
        raise UserError(f"{key}={path}: there is no such folder; give a run's folder or one of its checkpoints.")
    if (given / CONFIG_YAML).is_file() and (given / "run.json").is_file():
        raise UserError(f"{key}={path}: this run has saved no checkpoint yet.")
    for there, missing in ((WEIGHTS, CONFIG_JSON), (CONFIG_JSON, WEIGHTS)):
        if (given / there).is_file():
            raise UserError(f"{key}={path}: {missing} is missing beside {there}; a checkpoint of LeRobot has both.")
    raise UserError(f"{key}={path}: no checkpoint is in this folder; give a run's folder or one of its checkpoints.")


def _from_hub(key: str, name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=not download))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        if not download:
            way = "add download=true" if key == "checkpoint" else f"fetch it with: hf download {name}"
            raise UserError(
                f"{key}={name}: there is no such folder, nor has it been fetched from the Hugging Face hub; "
                f"give a folder, or {way}."
            ) from error
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{key}={name}: it could not be fetched from the Hugging Face hub: {reason}.") from error


def is_lerobot_checkpoint(folder: Path) -> bool:
    """Whether LeRobot wrote a folder that `locate` found."""
    return not (folder / CONFIG_YAML).is_file()


def read_run(folder: Path) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint.

    Raises:
        UserError: It is not one of a run.
    """
    file = folder / CONFIG_YAML
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: this is not readable YAML; use another checkpoint of the run.") from error
    if not isinstance(config, dict) or "policy" not in config:
        raise UserError(f"{file}: this is no configuration of a run; use another checkpoint.")
    return config


def tokenizer_steps(folder: Path, steps: int) -> int:
    """Of the updates that a VQ-BeT trains its tokenizer for, those that a checkpoint has not seen.

    LeRobot stores whether the tokenizer is trained; our checkpoints are named by their step.
    """
    if not is_lerobot_checkpoint(folder):
        return max(0, steps - int(folder.name)) if folder.name.isdigit() else steps
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / WEIGHTS, "numpy") as file:
            return 0 if bool(file.get_tensor("vqbet.action_head.vqvae_model.discretized")) else steps
    except (SafetensorError, OSError):  # told when the weights are read
        return steps


def checkpoint_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its policy and training, as nodes of our configuration.

    Returns:
        ``policy``, and where the checkpoint tells them ``optimizer``, ``scheduler`` and the keys of `INHERITED_KEYS`.
        LeRobot's hold only what differs from our files of its ``kind``, which is an option of the group policy.

    Raises:
        UserError: The file beside the weights is not readable, or tells what is not supported.
    """
    if not is_lerobot_checkpoint(folder):
        run = read_run(folder)
        policy = {key: value for key, value in run["policy"].items() if key != "path"}
        if "n_vqvae_training_steps" in policy:
            policy["n_vqvae_training_steps"] = tokenizer_steps(folder, policy["n_vqvae_training_steps"])
        found = {"policy": policy, **{key: run[key] for key in INHERITED_KEYS if key in run}}
        if "num_vqvae_training_steps" in (found.get("scheduler") or {}):
            follows = {"num_vqvae_training_steps": "${oc.select:policy.n_vqvae_training_steps,0}"}
            found["scheduler"] = {**found["scheduler"], **follows}
        return found
    config = config_json.read(folder)
    policy = config_json.policy_options(config, str(folder / CONFIG_JSON))
    if config["type"] == "vqbet":
        policy["n_vqvae_training_steps"] = tokenizer_steps(folder, policy.get("n_vqvae_training_steps", 20000))
    found = {"kind": config["type"], "policy": policy}
    optimizer, groups = config_json.optimizer_options(config)
    if optimizer:
        found |= {"optimizer": optimizer, "param_groups": groups}
    if scheduler := config_json.scheduler_options(config):
        found["scheduler"] = scheduler
    if "optimizer_grad_clip_norm" in config:
        found["grad_clip_norm"] = config["optimizer_grad_clip_norm"]
    return found


def policy_node(folder: Path) -> dict[str, Any]:
    """The node ``policy`` of a checkpoint, with every key.

    Raises:
        UserError: As `options`.
    """
    found = checkpoint_config(folder)
    node = found["policy"]
    if kind := found.get("kind"):
        node = {**yaml.safe_load((conf_dir() / "policy" / f"{kind}.yaml").read_text())["policy"], **node}
    return node
