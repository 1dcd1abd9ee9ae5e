"""Where checkpoints of this project's runs and of LeRobot are, and the configuration of their policy.

Nothing here imports torch.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from robolearn.checkpoints.lerobot import config_json
from robolearn.checkpoints.lerobot.registry import default_options
from robolearn.errors import UserError, one_line

WEIGHTS, CONFIG_YAML, CONFIG_JSON = "model.safetensors", "config.yaml", "config.json"

# What a run that starts from a checkpoint inherits of the run that saved it, beside the policy.
INHERITED_KEYS = ("optimizer", "scheduler", "param_groups", "use_ema", "ema", "grad_clip_norm")
# Lengths in updates of a policy's first stage, of which a checkpoint has done as many as its step.
STAGE_KEYS = {"n_vqvae_training_steps"}


def locate(key: str, path: str, download: bool = False) -> Path:
    """The folder that holds the weights of what a key names; checksums are not verified.

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
        raise UserError(
            f"{key}={path}: there is no such folder; give a run's folder or one of its checkpoints.", key=key
        )
    if (given / CONFIG_YAML).is_file() and (given / "run.json").is_file():
        raise UserError(f"{key}={path}: this run has saved no checkpoint yet.", key=key)
    for there, missing in ((WEIGHTS, CONFIG_JSON), (CONFIG_JSON, WEIGHTS)):
        if (given / there).is_file():
            raise UserError(
                f"{key}={path}: {missing} is missing beside {there}; a checkpoint of LeRobot has both.", key=key
            )
    raise UserError(
        f"{key}={path}: no checkpoint is in this folder; give a run's folder or one of its checkpoints.", key=key
    )


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
                f"give a folder, or {way}.",
                key=key,
            ) from error
        raise UserError(
            f"{key}={name}: it could not be fetched from the Hugging Face hub: {one_line(error)[:200]}.", key=key
        ) from error


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
        raise UserError(
            f"{file}: this is not readable YAML; use another checkpoint of the run.", key=str(file)
        ) from error
    if not isinstance(config, dict) or "policy" not in config:
        raise UserError(f"{file}: this is no configuration of a run; use another checkpoint.", key=str(file))
    return config


def checkpoint_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its policy and training, as nodes of our configuration.

    Returns:
        ``policy``, and where the checkpoint has them ``optimizer``, ``scheduler`` and the keys of `INHERITED_KEYS`.
        LeRobot's hold only what differs from our files of its ``kind``, which is an option of the group policy.

    Raises:
        UserError: The file beside the weights is not readable, or has what is not supported.
    """
    if is_lerobot_checkpoint(folder):
        return config_json.checkpoint_nodes(folder)
    run = read_run(folder)
    policy = {key: value for key, value in run["policy"].items() if key != "path"}
    steps = int(folder.name) if folder.name.isdigit() else 0
    for key in STAGE_KEYS & policy.keys():
        policy[key] = max(0, policy[key] - steps)
    nodes = {"policy": policy, **{key: run[key] for key in INHERITED_KEYS if key in run}}
    if "num_vqvae_training_steps" in (nodes.get("scheduler") or {}):
        follows = {"num_vqvae_training_steps": "${oc.select:policy.n_vqvae_training_steps,0}"}
        nodes["scheduler"] = {**nodes["scheduler"], **follows}
    return nodes


def policy_node(folder: Path) -> dict[str, Any]:
    """The node ``policy`` of a checkpoint, with every key.

    Raises:
        UserError: As `checkpoint_config`.
    """
    found = checkpoint_config(folder)
    node = found["policy"]
    if kind := found.get("kind"):
        node = {**default_options("policy", kind), **node}
    return node
