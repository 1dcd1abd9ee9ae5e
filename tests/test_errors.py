"""What a user is told, and that only one module phrases it."""

from pathlib import Path

import pytest
from fakes.errors import refused

import robolearn
from robolearn.errors import (
    UserError,
    at_least,
    closest_match,
    describe_exception,
    did_you_mean,
    first_line,
    one_line,
    one_of,
    with_class,
)

SOURCE = Path(robolearn.__file__).parents[1]


def test_a_fix_ends_the_sentence() -> None:
    assert str(UserError("a=1 is wrong.", key="a", fix="set a=2.")) == "a=1 is wrong; set a=2."
    assert str(UserError("a=1 is wrong.")) == "a=1 is wrong."


def test_values_below_a_minimum_are_refused() -> None:
    at_least(1, **{"a.b": 1, "a.c": None})
    assert "at least 1" in str(refused("a.b", at_least, 1, **{"a.b": 0}))
    refused("a.b", at_least, 1, **{"a.b": float("nan")})


def test_a_value_that_is_no_choice_is_refused_and_the_nearest_named() -> None:
    one_of("a", "red", ("red", "green"))
    assert "did you mean 'green'?" in str(refused("a", one_of, "a", "gren", ("red", "green")))
    assert "did you mean" not in str(refused("a", one_of, "a", "xyz", ("red", "green")))


def test_similar_names() -> None:
    assert closest_match("horizn", iter(["horizon", "heads"])) == "horizon"
    assert closest_match("zzz", ["horizon"]) is None
    assert did_you_mean("zzz", ["horizon"], cutoff=0) == " (did you mean 'horizon'?)"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a\n  b."), ("a b", "a", "ValueError: a")),
        (ValueError("  all is lost. "), ("all is lost", "all is lost", "ValueError: all is lost")),
        (KeyError(), ("KeyError", "KeyError", "KeyError")),
    ],
)
def test_exceptions_on_one_line(error: Exception, expected: tuple[str, str, str]) -> None:
    assert (one_line(error), first_line(error), with_class(error)) == expected


def test_long_messages_are_cut() -> None:
    assert one_line(ValueError("abc. def"), limit=4) == "abc"
    assert describe_exception(ValueError("x" * 400)) == f"ValueError: {'x' * 300}…"


def test_an_error_of_users_code_tells_its_place() -> None:
    def fail() -> None:
        raise ValueError("no\nbattery.")

    with pytest.raises(ValueError, match="battery") as raised:
        fail()
    assert describe_exception(raised.value).startswith(f"ValueError: no battery ({__file__}:")
    assert describe_exception(KeyError()) == "KeyError: no message"


@pytest.mark.parametrize("written", ["difflib", '" ".join(str(error).split())', "traceback.extract_tb"])
def test_messages_are_phrased_in_one_module(written: str) -> None:
    files = [str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py") if written in file.read_text()]
    assert files == ["robolearn/errors.py"]
