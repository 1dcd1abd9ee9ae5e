"""``policy.path``: the policy, optimizer and schedule of a checkpoint become options before Hydra composes.

Hydra chooses files before it looks at values, so what a checkpoint says is stored as ``policy=pretrained``, which
selects ``optimizer=checkpoint`` and ``scheduler=checkpoint``; composing, sweeps and ``--cfg`` show what will run.
"""

import dataclasses
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from robolearn.checkpoints import locate
from robolearn.checkpoints.lerobot.registry import get_interop
from robolearn.config.compose import CommandLine
from robolearn.errors import UserError
from robolearn.system.paths import conf_dir

KEY, CHOICE = "policy.path", "policy=pretrained"


def register_from_command_line(line: CommandLine) -> CommandLine:
    """Register the checkpoint that ``policy.path`` names, typed or in an experiment; it selects ``policy=pretrained``.

    Returns:
        The command line with the choice of the policy.

    Raises:
        UserError: The checkpoint is not there or not supported, or another policy is chosen beside it.
    """
    typed = {override.key_or_group: override for override in _parsed(line.overrides)}
    path, choice = typed.get(KEY), typed.get("policy")
    if path is not None and choice is None:
        line = _added(line)
    elif path is not None and choice is not None and choice.value() != "pretrained":
        raise UserError(
            f"{choice.input_line}: {KEY} decides the policy; leave this out, or give {CHOICE}, and change single keys.",
            key="policy",
        )
    if path is not None:
        if path.is_sweep_override():
            raise UserError(
                f"{path.input_line}: one checkpoint at a time, because it decides what the keys are.", key=KEY
            )
        register(str(path.value() or ""))
    elif found := _of_experiment(line, typed.get("experiment")):
        register(found)
    elif choice is not None and choice.value() == "pretrained":
        raise UserError(f"{KEY}: it is missing; write {KEY}=FOLDER_OR_HUB_ID.", key=KEY)
    return line


def register(path: str) -> None:
    """Make what a checkpoint says an option of the groups policy, optimizer and scheduler.

    Raises:
        UserError: It is not there or not supported.
    """
    if not path:
        raise UserError(f"{KEY}: it is missing; write {KEY}=FOLDER_OR_HUB_ID.", key=KEY)
    found = locate.checkpoint_config(locate.locate(KEY, path))
    kind = found.pop("kind", None)
    bases = (get_interop(kind).optimizer, get_interop(kind).scheduler) if kind else (None, None)
    defaults: list[Any] = [kind] if kind else []
    # Options of parameter groups belong to the optimizer: another one is chosen without them.
    groups = {"optimizer": ("optimizer", "param_groups"), "scheduler": ("scheduler",)}
    for (group, keys), base in zip(groups.items(), bases, strict=True):
        if group in found:
            content = {key: found.pop(key) for key in keys if key in found}
            _store(group, [f"{base}@{group}"] if base else [], content)
            defaults.append({f"override /{group}": "checkpoint"})
    found["policy"] = {**found["policy"], "path": path}
    _store("policy", defaults, found, name="pretrained")


def _store(group: str, defaults: list[Any], content: dict[str, Any], name: str = "checkpoint") -> None:
    # Our files come first, so that what the checkpoint says goes over them.
    node = {"defaults": [d for d in defaults if isinstance(d, str)], **content}
    node["defaults"] += ["_self_", *(d for d in defaults if not isinstance(d, str))]
    ConfigStore.instance().store(group=group, name=name, node=node, package="_global_", provider="checkpoint")


def _parsed(overrides: list[str]) -> list[Override]:
    parsed = []
    for text in overrides:
        try:
            parsed.append(OverridesParser.create().parse_override(text))
        except HydraException:  # reported when everything is composed
            continue
    return parsed


def _added(line: CommandLine) -> CommandLine:
    plain = [text.lstrip("+") if text.lstrip("+").startswith(f"{KEY}=") else text for text in line.overrides]
    typed = [text.lstrip("+") if text.lstrip("+").startswith(f"{KEY}=") else text for text in line.typed]
    return dataclasses.replace(line, overrides=[CHOICE, *plain], typed=[CHOICE, *typed])


def _of_experiment(line: CommandLine, experiment: Override | None) -> str | None:
    """The checkpoint that an experiment's file names."""
    name = experiment.value() if experiment is not None and not experiment.is_sweep_override() else None
    folders = [Path(line.args.config_dir)] if line.args.config_dir else []
    for folder in (*folders, conf_dir()):
        file = folder / "experiment" / f"{name}.yaml"
        if name and file.is_file():
            try:
                found = OmegaConf.select(OmegaConf.load(file), KEY)
            except (yaml.YAMLError, HydraException):  # reported when everything is composed
                return None
            return str(found) if found else None
    return None
