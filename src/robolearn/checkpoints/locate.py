"""Where checkpoints of this project's runs and of LeRobot are, and the configuration of their policy.

Nothing here imports torch.
"""

import re
from pathlib import Path
from typing import Any

from robolearn.checkpoints.lerobot import config_json
from robolearn.checkpoints.lerobot.registry import default_options
from robolearn.checkpoints.literal import check_literal
from robolearn.errors import UserError, one_line
from robolearn.runs.run_files import numbered_checkpoints, read_config
from robolearn.system.json_files import DamagedFileError
from robolearn.system.paths import inside

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
    # Tools that copy folders may leave links out.
    newest = [*numbered_checkpoints(given)[-1:], *numbered_checkpoints(given / "checkpoints")[-1:]]
    folders = (given, given / "last", given / "checkpoints" / "last", *newest)
    for folder in (*folders, given / "pretrained_model", *(parent / "pretrained_model" for parent in folders[1:])):
        if (folder / WEIGHTS).is_file() and ((folder / CONFIG_YAML).is_file() or (folder / CONFIG_JSON).is_file()):
            return _checked(folder.resolve())
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


def _checked(folder: Path) -> Path:
    for file in folder.iterdir():
        if file.is_symlink():
            inside(folder, file.name)
    return folder


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


def config_file(folder: Path) -> Path:
    """The file of a folder that `locate` found which says what its policy is."""
    return folder / (CONFIG_JSON if is_lerobot_checkpoint(folder) else CONFIG_YAML)


def read_run(folder: Path) -> dict[str, Any]:
    """The configuration of the run that wrote a checkpoint, which nothing has checked.

    Raises:
        UserError: It is not one of a run.
    """
    file = folder / CONFIG_YAML
    try:
        config = read_config(file)
    except (FileNotFoundError, DamagedFileError) as error:
        raise UserError(
            f"{file}: this is not readable YAML; use another checkpoint of the run.", key=str(file)
        ) from error
    if not isinstance(config.get("policy"), dict):
        raise UserError(f"{file}: this is no configuration of a run; use another checkpoint.", key=str(file))
    return config


def checkpoint_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its policy and training, as nodes of our configuration.

    Returns:
        ``policy``, and where the checkpoint has them ``optimizer``, ``scheduler`` and the keys of `INHERITED_KEYS`.
        LeRobot's hold only what differs from our files of its ``kind``, which is an option of the group policy.

    Raises:
        UserError: The file beside the weights is not readable, or has what is not supported or no plain value.
    """
    if is_lerobot_checkpoint(folder):
        nodes = config_json.checkpoint_nodes(folder)
        return {**nodes, "policy": _offline(nodes["policy"])}
    run = read_run(folder)
    check_literal(folder / CONFIG_YAML, {key: run[key] for key in ("policy", *INHERITED_KEYS) if key in run})
    policy = _offline({key: value for key, value in run["policy"].items() if key != "path"})
    steps = int(folder.name) if folder.name.isdigit() else 0
    for key in STAGE_KEYS & policy.keys():
        if isinstance(policy[key], int):
            policy[key] = max(0, policy[key] - steps)
    nodes = {"policy": policy, **{key: run[key] for key in INHERITED_KEYS if key in run}}
    scheduler = nodes.get("scheduler")
    if isinstance(scheduler, dict) and "num_vqvae_training_steps" in scheduler:
        follows = {"num_vqvae_training_steps": "${oc.select:policy.n_vqvae_training_steps,0}"}
        nodes["scheduler"] = {**scheduler, **follows}
    return nodes


def _offline(policy: dict[str, Any]) -> dict[str, Any]:
    """A node without the permission to use the network, which is the user's to give."""
    return {**policy, "download": False} if "download" in policy else policy


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
