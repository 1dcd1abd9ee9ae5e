"""What a checkpoint's configuration may build: what robolearn ships, and what the user names.

``_target_`` can name any function of any installed package, so that the configuration beside a stranger's weights is a
program of the stranger's. It is looked through before Hydra gets it and before anything that it names is imported.
"""

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from robolearn.checkpoints.lerobot.registry import default_options
from robolearn.config.compose import CommandLine, parsed_overrides
from robolearn.config.schema import CONFIG_GROUPS
from robolearn.errors import UserError, did_you_mean
from robolearn.system.paths import conf_dir

KEY = "trust_checkpoint"
GROUPS = ("policy", "env", "eval", "optimizer", "scheduler")
"""Groups that runs inherit from a checkpoint."""

LOADS = ("id", "package", "environ")
"""Options of an environment that decide which modules are imported, and how."""


@functools.cache
def shipped_targets() -> Mapping[str, frozenset[str]]:
    """What a checkpoint's node may name without asking, by the node's key: what our configuration files name there."""
    found = {"ema": frozenset({yaml.safe_load((conf_dir() / "train.yaml").read_text())["ema"]["_target_"]})}
    for group in GROUPS:
        nodes = [default_options(group, file.stem) for file in sorted((conf_dir() / group).glob("*.yaml"))]
        found[group] = frozenset(node["_target_"] for node in nodes if node and "_target_" in node)
    return found


@dataclass(frozen=True)
class Trust:
    """What the user says about the code that a checkpoint names; by default nothing.

    Args:
        overrides: The command line.
        folder: Of the user's own configuration files.
        replaces: Whether keys of the command line take the place of the checkpoint's.
    """

    overrides: Sequence[str] = ()
    folder: Path | None = None
    replaces: bool = True

    @classmethod
    def of(cls, line: CommandLine) -> "Trust":
        """That of a command line."""
        return cls(tuple(line.overrides), Path(line.args.config_dir) if line.args.config_dir else None)

    @classmethod
    def of_job(cls, hydra: Any) -> "Trust":
        """That of a job whose own keys say nothing of the checkpoint's, from its node ``hydra``."""
        folders = [Path(s.path) for s in hydra.runtime.config_sources if s.provider == "command-line"]
        return cls(tuple(str(text) for text in hydra.overrides.task), folders[0] if folders else None, False)

    def admit(self, file: Path, nodes: Mapping[str, Any]) -> dict[str, Any]:
        """The nodes of a checkpoint, if they build nothing but what they may.

        Args:
            file: Where they come from, for messages.
            nodes: By their key.

        Returns:
            The nodes, without what the command line replaces, which is not looked at.

        Raises:
            UserError: One would build something else.
        """
        admitted = copy.deepcopy(dict(nodes))
        for override in parsed_overrides(self.overrides) if self.replaces else ():
            path, text = override.key_or_group.split("."), (override.input_line or "").partition("=")[2]
            # A mapping is merged with the checkpoint's, and options of groups with these names are the checkpoint's.
            kept = "{" in text or len(path) == 1 and ("checkpoint" in text or "pretrained" in text)
            if override.package is None and not kept:
                _replace(admitted, path, text)
        if not self._trusts_everything:
            for key, node in admitted.items():
                self._check(file, key, node)
        return admitted

    @property
    def _trusts_everything(self) -> bool:
        given = {override.key_or_group: override for override in parsed_overrides(self.overrides)}
        return KEY in given and not given[KEY].is_sweep_override() and given[KEY].value() is True

    @functools.cached_property
    def _own(self) -> list[dict[str, Any]]:
        """The nodes that the user's own command line and files describe."""
        found: list[dict[str, Any]] = []
        for override in parsed_overrides(self.overrides):
            if override.key_or_group.endswith("_target_") and not override.is_delete():
                found.append({"_target_": (override.input_line or "").partition("=")[2]})
            elif not (override.is_delete() or override.is_sweep_override()):
                found += _targets(override.value())
        # The groups alone: beside them may lie anything, also the checkpoint.
        groups = [self.folder / group for group in (*CONFIG_GROUPS, "experiment")] if self.folder else []
        for file in (file for group in groups for file in group.rglob("*.yaml")):
            try:
                found += _targets(yaml.safe_load(file.read_text()))
            except (OSError, ValueError, yaml.YAMLError):  # reported when everything is composed
                continue
        return found

    def _check(self, file: Path, key: str, value: Any) -> None:
        if isinstance(value, list):
            for index, child in enumerate(value):
                self._check(file, f"{key}[{index}]", child)
        if not isinstance(value, dict):
            return
        special = [str(name) for name in value if re.fullmatch(r"_\w+_", str(name))]
        if special and not self._may_build(key, value, special):
            raise _refusal(file, key, value, special, self.replaces)
        for name, child in value.items():
            self._check(file, f"{key}.{name}", child)

    def _may_build(self, key: str, node: dict[str, Any], special: Sequence[str]) -> bool:
        if not isinstance(node.get("_target_"), str):
            return False
        if node["_target_"] in shipped_targets().get(key, ()):
            return set(special) <= {"_target_", "_partial_"} and isinstance(node.get("_partial_", False), bool)
        same = ("_target_", *LOADS)
        return any(all(node.get(name) == own.get(name) for name in same) for own in self._own)


def _refusal(file: Path, key: str, node: dict[str, Any], special: Sequence[str], replaces: bool) -> UserError:
    target = node.get("_target_")
    if isinstance(target, str) and target not in shipped_targets().get(key, ()):
        package = f" of the package {str(node['package'])[:80]!r}" if "package" in node else ""
        # Of a run of an older version, whose modules had other names.
        near = did_you_mean(target[:80], shipped_targets().get(key, ()))
        part, what = "_target_", f"would build {target[:80]!r}{package}{near}"
    else:
        part = next((name for name in special if name != "_target_"), "_target_")
        what = f"holds {part}={str(node[part])[:80]!r}"
    choose = f"choose {key}=NAME, " if key in GROUPS[1:] else ""
    way = f"{choose}give {key}._target_=NAME" if "." not in key else f"give {key}=VALUE"
    return UserError(
        f"{file}: {key} {what}, and a checkpoint builds only what robolearn ships or you name",
        key=f"{key}.{part}",
        fix=f"{way + ', ' if replaces else ''}add --config-dir with files of yours that name it, or {KEY}=true if you "
        "trust who made the checkpoint",
    )


def _replace(tree: dict[str, Any], path: Sequence[str], text: str) -> None:
    """Put the user's target, or null, in the place of a value that there is."""
    *parents, last = path
    node: Any = tree
    for part in parents:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and last in node:
        node[last] = text if last == "_target_" else None


def _targets(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if isinstance(tree.get("_target_"), str):
            yield tree
        for child in tree.values():
            yield from _targets(child)
    elif isinstance(tree, list):
        for child in tree:
            yield from _targets(child)
