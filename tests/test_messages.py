"""The fixture `refuses`, and the list of what refusals say."""

import ast
import json
from pathlib import Path

import pytest
from fakes.refusals import LIST, TESTS, Refuses, neutral

from robolearn.cli.entry import entry_point
from robolearn.errors import UserError


def refuse(key: str | None = "seed", message: str = "seed=-1 is negative.") -> None:
    raise UserError(message, key=key)


def test_the_key_is_looked_at(refuses: Refuses) -> None:
    with pytest.raises(AssertionError, match="about seed: seed=-1"), refuses("sed"):
        refuse()
    with refuses("seed") as refusal:
        refuse()
    assert (refusal.error.key, refusal.status) == ("seed", None)


def test_a_command_that_ends_with_status_2_is_asked_for_its_reason(refuses: Refuses) -> None:
    with refuses("seed") as refusal:
        entry_point(lambda argv: refuse())([])
    assert refusal.status == 2
    with pytest.raises(AssertionError, match="comes from no UserError"), refuses("seed"):
        raise SystemExit(2)


def test_what_differs_between_machines_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    error = UserError(f"{tmp_path}/a, {TESTS}/b.py:7 and {Path.home()}/c: no such key in the file.", key="a")
    error.__cause__ = ValueError("no such key\nin the file")
    assert neutral(error, tmp_path.parent) == "<tmp>/a, <repo>/tests/b.py and ~/c: <reason>."


def test_the_list_has_no_test_that_is_gone() -> None:
    listed = json.loads(LIST.read_text())
    assert list(listed) == sorted(listed)
    names = {}
    for test in listed:
        file, name = test.split("[")[0].split("::")
        if file not in names:
            tree = ast.parse((TESTS.parent / file).read_text())
            names[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in names[file], f"{test} is gone: pytest -n 0 --update-messages {file}"
