"""JSON that any reader takes, and what is told of files that hold none."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from fakes.damage import DAMAGE

from robolearn.system.json_files import DamagedFileError, parse_json, read_json, to_json, write_json


def strict(text: str) -> object:
    """What a reader makes of it that knows the standard alone."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_no_number_becomes_null_at_any_depth() -> None:
    content = {"a": [math.nan, {"b": (math.inf, -math.inf, np.float64("nan"))}], "c": 1.5}
    assert strict(to_json(content)) == {"a": [None, {"b": [None, None, None]}], "c": 1.5}


def test_a_file_is_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": math.nan, "b": 1})
    assert read_json(tmp_path / "a.json") == {"a": None, "b": 1}


def test_numbers_that_are_none_are_read_as_null() -> None:
    assert parse_json("[NaN, -Infinity, 1]") == [None, None, 1]


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "of other keys"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    DAMAGE[damage](file)
    with pytest.raises(DamagedFileError, match=str(file)):
        read_json(file)


def test_a_folder_in_a_files_place_makes_room_and_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {})
    DAMAGE["a folder"](file)
    write_json(file, {"a": 1})
    assert read_json(file) == {"a": 1}
    assert (tmp_path / "a.json.1/something").read_text() == "of somebody"
