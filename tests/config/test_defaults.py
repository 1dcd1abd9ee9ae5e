"""A default that stands twice, in a file of conf/ and in the constructor, is the same in both."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from robolearn.config.schema import RUNTIME_ARGS
from robolearn.config.validate import find_target
from robolearn.system.paths import conf_dir

FILES = {
    file.relative_to(conf_dir()).with_suffix("").as_posix(): yaml.safe_load(file.read_text()) or {}
    for file in sorted(conf_dir().rglob("*.yaml"))
    if "hydra" not in file.parts
}

POLICIES = [file for file in FILES if file.startswith("policy/") and "policy" in FILES[file]]
ON_PURPOSE = {
    # Mappings, for which the code has null.
    **{file: {"policy.normalization_mapping"} for file in POLICIES},
    **{f"env/{name}": {"env.features_map"} for name in ("aloha_insertion", "pusht", "xarm_lift")},
    "image_transforms/default": {"tfs"},
    # What this option is for.
    "logger/none": {"tensorboard"},
}
"""Keys whose file says something else than the code."""


def nodes(key: str, tree: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The nodes of our own classes and functions, by their key."""
    if isinstance(tree, dict):
        if str(tree.get("_target_", "")).startswith("robolearn."):
            yield key, tree
        for name, child in tree.items():
            yield from nodes(f"{key}.{name}".lstrip("."), child)


def differences(file: str) -> set[str]:
    found = set()
    for key, node in nodes("", FILES[file]):
        parameters = inspect.signature(find_target(key, node["_target_"])).parameters
        for name, value in node.items():
            default = parameters[name].default if name in parameters else inspect.Parameter.empty
            default = list(default) if isinstance(default, tuple) else default
            if default is inspect.Parameter.empty or "${" in str(value):
                continue
            if value != default:
                found.add(f"{key}.{name}".lstrip("."))
    return found


@pytest.mark.parametrize("file", [name for name, tree in FILES.items() if list(nodes("", tree))])
def test_the_file_and_the_code_agree(file: str) -> None:
    assert differences(file) == ON_PURPOSE.get(file, set())


def test_a_policy_file_lists_every_option() -> None:
    for file in POLICIES:
        node = FILES[file]["policy"]
        names = inspect.signature(find_target("policy", node["_target_"])).parameters.keys()
        assert names - node.keys() == RUNTIME_ARGS["policy"], file


def test_what_is_on_purpose_is_there() -> None:
    assert ON_PURPOSE.keys() <= FILES.keys()
