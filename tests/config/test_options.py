"""docs/options.md: every option of the reference has a row, whose key is there, has the default told, and is read."""

import ast
import dataclasses
import functools
import inspect
import json
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import torch
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from robolearn.config.compose import compose, parse
from robolearn.config.schema import TrainConfig
from robolearn.config.validate import check_targets, check_value, find_target
from robolearn.system.paths import conf_dir

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(--[\w.]+)` \| (?:`([\w.=]+)`|–) \| (.*?) \| (.*?) \|$", re.MULTILINE)
DEFAULT = re.compile(r"(?:(\w+) )?`([^`]*)`")

# Which files have the options of these names; those of the types of a group are named in their rows.
CONTEXTS = {
    "--dataset.image_transforms.": "image_transforms=default",
    "--dataset.": "dataset=lerobot",
    "--online.": "online=default",
    "--wandb.": "logger=wandb",
}
TYPES = {"diffuser": "diffusers", "aloha": "aloha_insertion", "xarm": "xarm_lift"}
"""What the reference calls an environment whose file has another name here."""


@dataclass(frozen=True)
class Row:
    option: str
    key: str
    defaults: Mapping[str, str]
    differs: str

    def context(self, kind: str) -> tuple[str, ...]:
        """The choice of a file that has the key."""
        if kind:
            return (f"{self.option[2:].partition('.')[0]}={kind}",)
        return next(((choice,) for prefix, choice in CONTEXTS.items() if self.option.startswith(prefix)), ())


def read_rows() -> list[Row]:
    found = ROW.findall((ROOT / "docs" / "options.md").read_text())
    return [Row(option, key, dict(DEFAULT.findall(default)), differs) for option, key, default, differs in found]


ROWS = read_rows()
KEYS = [(row, kind) for row in ROWS if row.key and "=" not in row.key for kind in row.defaults]
CHOICES = [row for row in ROWS if "=" in row.key]


def told(text: str) -> Any:
    """The value of a cell: JSON, or a text as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@functools.cache
def composed(*overrides: str) -> DictConfig:
    (job,) = compose(parse(overrides, "train"), "train")
    return job.cfg


def value_of(cfg: DictConfig, key: str) -> Any:
    missing = object()
    value = OmegaConf.select(cfg, key, default=missing)
    assert value is not missing, f"{key} has vanished"
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def as_written(key: str, context: tuple[str, ...]) -> Any:
    """The value in the file itself, which may refer to others."""
    group, _, rest = key.partition(".")
    file = "train" if not rest else next(f"{c.replace('=', '/')}" for c in context if c.startswith(f"{group}="))
    tree = yaml.safe_load((conf_dir() / f"{file}.yaml").read_text())
    for part in rest.split(".") if rest else [key]:
        tree = tree[part]
    return tree


def test_there_is_a_row_for_each_of_the_191() -> None:
    options = [row.option for row in ROWS]
    assert len(options) == len(set(options)) == 191
    assert len(re.findall(r"^\| `--", (ROOT / "docs" / "options.md").read_text(), re.MULTILINE)) == 191


def reference_rows(shared: Path) -> dict[str, dict[str, str]]:
    """Options of the full list with their defaults, by type where they belong to one."""
    found: dict[str, dict[str, str]] = {}
    kinds: list[str] = []
    for line in (shared / "options.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("| option |"):
            kinds = [] if cells[2] == "default" else cells[2:-1]
        elif line.startswith("| `--"):
            types = [TYPES.get(kind, kind) for kind in kinds] or [""]
            values = zip(types, cells[2 : 2 + len(types)], strict=True)
            found[cells[0].strip("`")] = {kind: value for kind, value in values if value != "–"}
    return found


def test_rows_are_those_of_the_full_list(shared: Path) -> None:
    expected = reference_rows(shared)
    assert {row.option for row in ROWS} == expected.keys()
    for row in ROWS:
        if row.key and "=" not in row.key:
            assert row.defaults.keys() == expected[row.option].keys(), row.option


def test_what_differs_is_said(shared: Path) -> None:
    expected = reference_rows(shared)
    for row in ROWS:
        if not row.key:
            assert len(row.differs) > 20, row.option
            continue
        for kind, text in row.defaults.items():
            theirs = expected[row.option].get(kind, "")
            if not row.differs:
                literal = ast.literal_eval(theirs.replace("(", "[").replace(")", "]"))
                assert literal == told(text), f"{row.option} {kind}: {theirs} there, {text} here"


@pytest.mark.parametrize(("row", "kind"), KEYS, ids=lambda value: value.option if isinstance(value, Row) else value)
def test_default(row: Row, kind: str) -> None:
    context = row.context(kind)
    text = row.defaults[kind]
    if "${" in text:
        assert as_written(row.key, context) == text
        assert value_of(composed(*context), row.key) is not None
    else:
        assert value_of(composed(*context), row.key) == told(text)


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: row.option)
def test_choice(row: Row) -> None:
    group, _, option = row.key.partition("=")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        before = hydra_compose("train", [], return_hydra_config=True).hydra.runtime.choices
        after = hydra_compose("train", [row.key], return_hydra_config=True).hydra.runtime.choices
    assert before[group] == row.defaults[""]
    assert after[group] == option
    one, two = ({**composed(*overrides), "output_dir": None} for overrides in ((), (row.key,)))  # it holds the time
    assert (one == two) == (option == row.defaults[""])


@pytest.mark.parametrize(("row", "kind"), KEYS, ids=lambda value: value.option if isinstance(value, Row) else value)
def test_a_change_is_seen_and_read(row: Row, kind: str) -> None:
    context = row.context(kind)
    overrides = changes(context)
    changed = composed(*context, *(f"{key}={text(value)}" for key, value in overrides.items()))
    key = next(key for key in overrides if key == row.key or key.startswith(f"{row.key}."))
    assert value_of(changed, key) == overrides[key] != value_of(composed(*context), key)
    assert check_targets(changed) == []
    assert is_read(row.key, changed), f"nothing reads {row.key}"


@functools.cache
def changes(context: tuple[str, ...]) -> dict[str, Any]:
    """Another value for every key that has rows in a context."""
    cfg = composed(*context)
    keys = dict.fromkeys(row.key for row, kind in KEYS if row.context(kind) == context)
    return dict(another(key, value_of(cfg, key), annotation_of(key, cfg)) for key in keys)


def owner(key: str, cfg: DictConfig) -> tuple[Any, str] | None:
    """What the node that holds a key builds, and the name of its argument; None for a root key."""
    parent, _, name = key.rpartition(".")
    target = OmegaConf.select(cfg, f"{parent}._target_") if parent else None
    return (find_target(parent, target), name) if target else None


def annotation_of(key: str, cfg: DictConfig) -> Any:
    found = owner(key, cfg)
    if found:
        return inspect.signature(found[0], eval_str=True).parameters[found[1]].annotation
    return get_type_hints(TrainConfig)[key] if "." not in key else float


def another(key: str, value: Any, annotation: Any) -> tuple[str, Any]:
    """A key, or one below it, and a value that it may have and has not."""
    if isinstance(value, dict):
        name = next(name for name, item in value.items() if re.fullmatch(r"\w+", name))
        values = [get_args(option)[1] for option in _options(annotation) if get_origin(option) is Mapping]
        return another(f"{key}.{name}", value[name], values[0] if values else Any)
    names = [choice for option in _options(annotation) for choice in get_args(option) if isinstance(choice, str)]
    doubled = [2 * value] if type(value) is int else []  # where only multiples are taken
    candidates = [_moved(value), *doubled, *names, "other", 1, 0.5, [1], True, None]
    return key, next(item for item in candidates if item != value and check_value(key, item, annotation) is None)


def _options(annotation: Any) -> tuple[Any, ...]:
    """An annotation, and those it is a choice of."""
    return (annotation, *(option for option in get_args(annotation) if not isinstance(option, str)))


def _moved(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    return [_moved(item) for item in value] if isinstance(value, list) else value


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def is_read(key: str, cfg: DictConfig) -> bool:
    """Whether the code that gets the key's value uses it."""
    if key.startswith("param_groups."):
        return reaches_optimizer(key, cfg)
    found = owner(key, cfg)
    if found and not found[0].__module__.startswith("robolearn."):
        return found[1] in inspect.signature(found[0]).parameters
    sources = [path.read_text() for room in ("cli", "config") for path in (ROOT / "src/robolearn" / room).glob("*.py")]
    if any(re.search(rf"\bcfg\.{re.escape(key)}\b", source) for source in sources):
        return True
    if not found:
        return f"${{{key}}}" in (conf_dir() / "train.yaml").read_text()
    target, argument = found
    if dataclasses.is_dataclass(target):  # its constructor is written by Python, others read the field
        modules = (ROOT / "src/robolearn").rglob("*.py")
        return any(re.search(rf"\.{argument}\b", path.read_text()) for path in modules)
    function = target.__init__ if inspect.isclass(target) else target
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(n, ast.Name) and n.id == argument and isinstance(n.ctx, ast.Load) for n in ast.walk(tree))


def reaches_optimizer(key: str, cfg: DictConfig) -> bool:
    """Whether an option of a parameter group is one of the policy's groups, and ends in the optimizer."""
    from robolearn.config.build import build, build_policy, plain
    from robolearn.training.optim import build_param_groups
    from robolearn.types import Feature, Spec

    _, group, option = key.split(".")
    observation = {"observation.image": Feature("VISUAL", (3, 96, 96)), "observation.state": Feature("STATE", (2,))}
    with torch.device("meta"):
        plain_cfg = composed(next(f"policy={name}" for name in ("act", "vqbet") if name in cfg.policy._target_))
        policy = build_policy(plain_cfg, Spec(observation, Feature("ACTION", (2,)), 10.0))
    optimizer = build("optimizer", cfg, build_param_groups(policy.param_groups(), plain(cfg)["param_groups"]))
    return any(g["name"] == group and g[option] == value_of(cfg, key) for g in optimizer.param_groups)


def test_this_test_finds_a_key_that_vanished_or_has_another_default() -> None:
    assert not is_read("grad_clip_nrom", composed())
    with pytest.raises(AssertionError, match="has vanished"):
        value_of(composed("policy=act"), "policy.horizn")
    row = next(row for row in ROWS if row.option == "--policy.chunk_size")
    with pytest.raises(AssertionError):
        test_default(Row(row.option, row.key, {"act": "101"}, ""), "act")
