"""Dotted names are looked up before anything is imported."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.errors import refused

from robolearn.config.targets import missing_part
from robolearn.config.validate import find_target

MODULE = """
raise SystemExit("it ran")
class Policy: ...
if True:
    other = maker = None
from collections import OrderedDict as Ordered
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Write a module of a user's own that ends everything when it is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, text: str = MODULE) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return write


@pytest.mark.parametrize("name", ["my_sim.Polici", "my_pack.Polici", "my_pack.sub.Polici", "my_pack.sbu.Policy"])
def test_a_misspelt_name_runs_no_module(module: Callable[..., None], name: str) -> None:
    for file in ("my_sim.py", "my_pack/__init__.py", "my_pack/sub.py"):
        module(file)
    assert "did you mean" in str(refused("policy._target_", find_target, "policy._target_", name))
    assert not {"my_sim", "my_pack"} & sys.modules.keys()


@pytest.mark.parametrize("name", ["this.nothing", "this", "robolearn.envs.PushTT", "a..b", "nowhere.at.all", "", "3"])
def test_what_is_missing(name: str) -> None:
    assert missing_part(name)
    assert "this" not in sys.modules


@pytest.mark.parametrize("name", ["Policy", "other", "maker", "Ordered", "Policy.method"])
def test_what_is_there(module: Callable[..., None], name: str) -> None:
    module("my_sim.py")
    assert missing_part(f"my_sim.{name}") is None


@pytest.mark.parametrize(
    "text",
    ["from os import *", "def __getattr__(name): ...", "globals()['x'] = 1", "setattr(sys.modules['a'], 'x', 1)"],
)
def test_what_only_importing_can_tell(module: Callable[..., None], text: str) -> None:
    module("my_sim.py", text)
    assert missing_part("my_sim.x") is None


def test_targets_of_ours_are_there() -> None:
    from robolearn.config.trust import shipped_targets

    assert [name for names in shipped_targets().values() for name in names if missing_part(name)] == []
