"""Turn Hydra's and OmegaConf's errors into one sentence: the key, the file, and the nearest right name."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robolearn.config.schema import CONFIG_GROUPS
from robolearn.errors import UserError, closest_match, did_you_mean, one_line
from robolearn.system.paths import conf_dir

COMMAND_LINE = "the command line"


class Sources:
    """Where configuration comes from: the groups, their options and files, and what each file sets."""

    def __init__(self, loader: ConfigLoader, config_name: str) -> None:
        self.loader = loader
        self.config_name = config_name

    def options(self, group: str) -> list[str]:
        """The options of a group; empty when there is no such group."""
        return sorted(self.loader.get_group_options(group, ObjectType.CONFIG))

    def is_group(self, name: str) -> bool:
        """Whether a folder of that name holds options."""
        return bool(self.options(name))

    def groups(self) -> list[str]:
        """The names of the groups at the top."""
        return [group for group in self.loader.list_groups("") if group != "hydra"]

    def path(self, config_path: str) -> Path | None:
        """The file of ``policy/diffusion``, in the first folder of the search path that has it."""
        for source in self.loader.get_sources():
            if source.scheme() == "file" and (file := Path(source.path) / f"{config_path}.yaml").is_file():
                return file
        return None

    def name(self, config_path: str) -> str:
        """How a file is called in messages."""
        file = self.path(config_path)
        if file is None:
            return f"{config_path}.yaml"
        for folder, prefix in ((conf_dir(), Path("conf")), (Path.cwd(), Path())):
            if file.is_relative_to(folder):
                return str(prefix / file.relative_to(folder))
        return str(file)

    def origin(self, key: str, overrides: list[str]) -> str | None:
        """The command line, or the last file of the defaults list that sets the dotted key."""
        for override in OverridesParser.create().parse_overrides(overrides):
            typed = override.key_or_group
            if (key == typed or key.startswith(f"{typed}.")) and not self.is_group(typed):
                return COMMAND_LINE
        found = None
        composed = self.loader.compute_defaults_list(self.config_name, overrides, RunMode.RUN)
        for item in composed.defaults:
            file = self.path(item.config_path) if item.config_path else None
            if file is None or str(item.config_path).startswith("hydra/"):
                continue
            package = "" if item.package in (None, "_global_") else item.package
            inside = key if not package else key.removeprefix(f"{package}.") if key.startswith(f"{package}.") else None
            content = OmegaConf.load(file)
            if inside is not None and _sets(content, inside):
                group = key.partition(".")[0]
                made_for = _selected(content).get(group)
                other = made_for is not None and made_for != composed.overrides.known_choices.get(group)
                found = self.name(str(item.config_path)) + (f", made for {group}={made_for}" if other else "")
        return found

    def naming(self, test: Callable[[str, Any], bool], overrides: list[str]) -> str | None:
        """Of the files that were chosen, the one with an item in its defaults list that passes a test."""
        typed = [text.lstrip("+").partition("=") for text in overrides]
        chosen = [f"{group}/{name}" for group, _, name in typed if self.is_group(group)]
        for path in [*reversed(chosen), self.config_name]:
            file = self.path(path)
            if file and any(test(group, option) for group, option in _selected(OmegaConf.load(file)).items()):
                return self.name(path)
        return None

    def reference(self, overrides: list[str]) -> DictConfig:
        """The configuration as it would be without the keys on the command line, or failing that, as shipped."""
        chosen = []
        for override in OverridesParser.create().parse_overrides(overrides):
            if self.is_group(override.key_or_group) and not override.is_sweep_override():
                chosen.append(override.input_line or "")
        for attempt in (chosen, []):
            try:
                cfg = self.loader.load_configuration(self.config_name, attempt, RunMode.RUN)
            except (HydraException, OmegaConfBaseException, ValueError):
                continue
            return cfg
        return OmegaConf.create()


def _sets(tree: Any, key: str) -> bool:
    node = tree
    for part in key.replace("[", ".").replace("]", "").split("."):
        if OmegaConf.is_list(node) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        elif OmegaConf.is_dict(node) and part in node:
            node = node._get_node(part)
        else:
            return False
    return True


def _selected(content: Any) -> dict[str, Any]:
    """The options that a file's defaults list selects, by group."""
    items = content.get("defaults", []) if OmegaConf.is_dict(content) else []
    pairs = [pair for item in items if OmegaConf.is_dict(item) for pair in item.items_ex(resolve=False)]
    return {str(key).rpartition(" ")[2].lstrip("/"): value for key, value in pairs}


def check_overrides(sources: Sources, overrides: list[str]) -> None:
    """Refuse what Hydra would answer with a traceback or with advice that does not fit here.

    Raises:
        UserError: A group gets no name of an option, or an option is added where one is chosen already.
        OverrideParseException: An override is not in Hydra's grammar.
    """
    for override in OverridesParser.create(sources.loader).parse_overrides(overrides):
        key, typed = override.key_or_group, override.input_line
        if not key or not re.match(r"[\w/]", key):
            raise UserError(
                f"{typed}: this is no key=value; write for instance policy=diffusion seed=1.", key=str(typed)
            )
        if not override.is_hydra_override() and sources.is_group(key):
            _check_choice(sources, override, key, str(typed))
        elif override.value_type is None and not override.is_delete():
            raise UserError(f"{typed}: a value is missing; write {key}=VALUE.", key=key)


def _check_choice(sources: Sources, override: Override, key: str, typed: str) -> None:
    options = sources.options(key)
    if override.is_delete():
        raise UserError(f"{typed}: the group {key} cannot be left out; choose one of {_listed(options)}.", key=key)
    if key in CONFIG_GROUPS and (override.is_add() or override.is_force_add()):
        raise UserError(f"{typed}: {key} is chosen already; write {typed.lstrip('+')}.", key=key)
    if key == "experiment" and not override.is_add():
        raise UserError(f"{typed}: an experiment is added with a plus: +{typed}.", key=key)
    value = override.value()
    if override.is_sweep_override() or isinstance(value, (str, list)):
        return
    raise UserError(f"{typed}: {key} is a group of files, so choose one of {_listed(options)}.", key=key)


def about(sentence: str) -> str | None:
    """The key or file that a sentence of `explain` is about; it begins with that."""
    found = re.match(r"[+~]*([^\s:=,]+)(?=,| \(|[:=])", sentence)
    return found[1] if found else None


def explain(error: Exception, sources: Sources, overrides: list[str]) -> str | None:
    """One sentence for an error of composing, or None for one that is no mistake of the user's."""
    if isinstance(error, OverrideParseException):
        return _syntax(error.override)
    if isinstance(error, MissingConfigException):
        return _missing_file(str(error.missing_cfg_file), sources, overrides)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: this is not YAML: {error.problem}."
    if isinstance(error, HydraException):
        return _composition(error, sources, overrides)
    if isinstance(error, OmegaConfBaseException):
        return _omegaconf(error, sources, overrides)
    if isinstance(error, (ValueError, TypeError)):
        if file := sources.naming(lambda name, value: isinstance(value, (bool, int)), overrides):
            return f"{file}: on, off, yes, no and numbers in its defaults are no names of options to YAML; quote them."
        return (
            f"The configuration does not compose: {one_line(error)}; robolearn-train --info defaults shows its files."
        )
    return None


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _syntax(typed: str) -> str:
    if re.fullmatch(r"[+~\w./@]+", typed):
        close = did_you_mean(typed, ["--help", "--cfg"]) if typed.startswith("-") else ""
        return f"{typed}: a value is missing; write {typed.lstrip('+~')}=VALUE{close}."
    key, _, value = typed.partition("=")
    if not re.fullmatch(r"[+~]{0,2}[\w./@]+", key) or " " in key:
        return f"{typed}: this is no key=value; write for instance policy=diffusion seed=1."
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{typed}: the value of {key} is not in Hydra's grammar; quote it, for the shell too: \"{key}='{quoted}'\"."


def _missing_file(path: str, sources: Sources, overrides: list[str]) -> str:
    group, _, option = path.rpartition("/")
    if not group:
        names = [name for name in sources.options("") if name != "__init__"]
        return f"--config-name {path}: there is no such file{did_you_mean(path, names)}."
    options = sources.options(group)
    typed = next((text for text in overrides if text.lstrip("+").split("=")[0] == group), None)
    file = sources.naming(lambda name, value: (name, value) == (group, option), overrides)
    place = typed or (f"{file}: {group}: {option}" if file else f"{group}={option}")
    return (
        f"{place}: there is no '{option}' in {group}{did_you_mean(option, options)}; "
        f"it has {_listed(options) or 'none'}."
    )


def _composition(error: HydraException, sources: Sources, overrides: list[str]) -> str:
    text = str(error)
    cause = error.__cause__
    if found := re.search(r"Sweeping over Hydra's configuration is not supported : '(.*)'", text):
        return f"{found[1]}: keys of hydra cannot be swept; give one value."
    if found := re.search(r"Ambiguous value for argument '(.*)'", text):
        key, _, value = found[1].partition("=")
        return f"{found[1]}: several values are a sweep, which needs --multirun; a list is written {key}=[{value}]."
    if found := re.search(r"Sweep parameters '(.*)' requires --multirun", text):
        return f"{found[1]}: several values are a sweep, which needs --multirun."
    if found := re.search(r"In '(.*)': Could not override '(.*)'", text):
        groups = sources.groups()
        group = found[2].partition("@")[0]
        advice = "write '# @package _global_' at its top and 'override /GROUP: OPTION' in its defaults"
        return (
            f"{sources.name(found[1])}: there is no group '{group}'{did_you_mean(group, groups)} to override; {advice}."
        )
    if found := re.search(r"Could not override '(.*)'", text):
        return _unknown_key(found[1], sources, overrides)
    if found := re.search(r"Error merging override (.*)", text):
        return _wrong_type(found[1], found[1].lstrip("+").split("=")[0], cause or error)
    if found := re.match(r"In '(.*)': (\w+) raised while composing config:\n(.*)", text, re.DOTALL):
        return _in_file(found[1], found[2], found[3], sources, overrides)
    if found := re.search(r"An item is already at '(.*)'", text):
        return f"+{found[1]}: this key exists already; write it without the plus."
    if found := re.search(r"Override (\S+) looks like a config group", text):
        group = found[1].partition("@")[0].lstrip("+")
        return f"{found[1]}: there is no group '{group}'{did_you_mean(group, sources.groups())}."
    if found := re.search(r"Could not delete from config. '(.*)' does not exist", text):
        return f"~{found[1]}: there is no such key to delete."
    if "does not support sweep type : INTERVAL_SWEEP" in text:
        typed = next((text for text in overrides if "interval(" in text), "interval()")
        return f"{typed}: the basic sweeper cannot draw from an interval; write choice(...) or range(...)."
    if isinstance(cause, OmegaConfBaseException):
        return _omegaconf(cause, sources, overrides)
    return f"The configuration does not compose: {one_line(error)}."


RENAMED = (
    (r"policy\.optimizer_(\w+)", r"optimizer.\1"),
    (r"policy\.scheduler_warmup_steps", r"scheduler.num_warmup_steps"),
    (r"policy\.scheduler_(\w+)", r"scheduler.\1"),
    (r"optimizer\.grad_clip_norm", r"grad_clip_norm"),
    (r"dataset\.image_transforms\.(\w+)", r"image_transforms.\1"),
    (r"wandb\.(\w+)", r"logger.wandb.\1"),
)
"""Keys of LeRobot's command line that have another name here."""


def _unknown_key(key: str, sources: Sources, overrides: list[str]) -> str:
    cfg = sources.reference(overrides)
    groups = sources.groups()
    if key.endswith(".type") and (group := key.removesuffix(".type")) in groups:
        return f"{key}: an option is chosen by its group: {group}={_listed(sources.options(group)).replace(', ', '|')}."
    for old, new in RENAMED:
        if re.fullmatch(old, key):
            return f"{key}: this key is called {re.sub(old, new, key)} here."
    typed = next((text for text in overrides if text.startswith(f"{key}=")), f"{key}=VALUE")
    if key.startswith("param_groups."):
        return f"{key}: options of a parameter group are added with a plus: +{typed}."
    parent, bad, siblings = _deepest(cfg, key)
    choice = OmegaConf.select(cfg, f"hydra.runtime.choices.{parent}") if parent in CONFIG_GROUPS else None
    file = sources.name(f"{parent}/{choice}" if choice else sources.config_name)
    where = f"{parent or file} has no key '{bad}'" if not choice else f"{file} has no key '{bad}'"
    if parent and (taken := _parameter(cfg, parent, bad)):
        return f"{key}: {taken} takes it, but the file does not list it; add it with a plus: +{typed}."
    elsewhere = _other_options(sources, parent, bad)
    if elsewhere:
        return f"{key}: {where}; {elsewhere} would have it."
    match = closest_match(bad, [*siblings, *([] if parent else groups)])
    if match:
        return f"{key}: {where} (did you mean '{f'{parent}.{match}' if parent else match}'?)."
    keys = [name for name in _dotted(cfg) if not name.startswith("hydra.")]
    leaf = key.rpartition(".")[2]
    match = next((name for name in keys if name.rpartition(".")[2] == leaf), None) or closest_match(key, keys)
    if match:
        return f"{key}: {where} (did you mean '{match}'?)."
    return f"{key}: {where}; {'it' if parent else 'the root'} has {_listed([*siblings])}."


def _other_options(sources: Sources, group: str, key: str) -> str:
    """The options of a group that do set the key, as ``optimizer=sgd``."""
    options = sources.options(group) if group in CONFIG_GROUPS else []
    files = {option: sources.path(f"{group}/{option}") for option in options}
    having = [option for option, file in files.items() if file and _sets(OmegaConf.load(file), key)]
    return " or ".join(f"{group}={option}" for option in having)


def _deepest(cfg: DictConfig, key: str) -> tuple[str, str, list[str]]:
    """The deepest node of the path that exists, the part it lacks, and the parts it has."""
    node: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node) or node._is_none() or part not in node:
            names = [str(name) for name in node] if OmegaConf.is_dict(node) and not node._is_none() else []
            return ".".join(parts[:depth]), part, [name for name in names if name != "hydra"]
        node = node._get_node(part)
    return ".".join(parts[:-1]), parts[-1], []


def _dotted(node: Any, prefix: str = "") -> list[str]:
    if not OmegaConf.is_dict(node) or node._is_none() or node._is_missing():
        return [prefix]
    return [name for key in node for name in _dotted(node._get_node(key), f"{prefix}.{key}" if prefix else str(key))]


def _parameter(cfg: DictConfig, parent: str, name: str) -> str | None:
    """The class that takes an argument its file does not list."""
    import inspect

    from robolearn.config.validate import find_target

    target = OmegaConf.select(cfg, f"{parent}._target_")
    if target is None:
        return None
    try:
        parameters = inspect.signature(find_target(f"{parent}._target_", target)).parameters
    except (UserError, TypeError, ValueError):
        return None
    return target.rpartition(".")[2] if name in parameters else None


def _in_file(path: str, kind: str, text: str, sources: Sources, overrides: list[str]) -> str:
    file = sources.name(path)
    key = (re.search(r"full_key: (\S+)", text) or ["", ""])[1]
    if "not in" in text or kind in ("ConfigKeyError", "ConfigAttributeError"):
        names = [name for name in sources.reference([]) if name != "hydra"]
        group = path.partition("/")[0]
        return f"{file}: there is no key '{key}'{did_you_mean(key, map(str, names))}; {_package(group, key)}."
    return f"{file}: {_type_text(key, text)}."


def _package(group: str, key: str) -> str:
    if group == "experiment":
        return "an experiment sets root keys and keys of groups, as in 'policy: {horizon: 32}'"
    return f"keys of a file in {group}/ belong to {group} unless it starts with '# @package _global_'"


def _wrong_type(typed: str, key: str, cause: BaseException) -> str:
    text = str(cause)
    if "Key" in text and "not in" in text:
        return f"{typed}: there is no key '{key}'; see robolearn-train --cfg job."
    return f"{typed}: {_type_text(key, text)}."


KINDS = {
    "bool": "true or false",
    "Integer": "an integer",
    "Float": "a number",
    "Boolean": "true or false",
    "String": "a string",
}


def _type_text(key: str, text: str) -> str:
    if found := re.search(r"Value '(.*?)'(?: of type '\w+')? (?:could not be converted to|is not a valid) (\w+)", text):
        return f"{key} takes {KINDS.get(found[2], found[2])}, not '{found[1]}'"
    if "not Optional" in text or "Incompatible value 'None'" in text:
        return f"{key} cannot be null"
    if found := re.search(r"Cannot (?:assign|convert) .*?(\w+)'? to (\w+)", text):
        return f"{key} takes {KINDS.get(found[2], found[2])}, not a {found[1]}"
    return f"{key}: {' '.join(text.split(chr(10))[0].split()).rstrip('.')}"


def _omegaconf(error: OmegaConfBaseException, sources: Sources, overrides: list[str]) -> str:
    text = str(error).split("\n")[0].rstrip(".")
    key = getattr(error, "full_key", None) or ""
    place = f"{key} ({origin})" if key and (origin := _origin(sources, key, overrides)) else key or "The configuration"
    if found := re.search(r"Interpolation key '(.*)' not found", text):
        names = _dotted(sources.reference(overrides))
        return f"{place}: ${{{found[1]}}} names no key{did_you_mean(found[1], names)}."
    return f"{place}: {text}."


def _origin(sources: Sources, key: str, overrides: list[str]) -> str | None:
    try:
        return sources.origin(key, overrides)
    except (HydraException, OmegaConfBaseException):
        return None
