"""What a checkpoint's configuration may hold: values that mean what they are."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robolearn.errors import UserError

FIX = "use another checkpoint"
MOST_VALUES, DEEPEST = 100_000, 50
"""Far beyond any configuration: by aliases, a few lines of YAML hold a billion values, or themselves."""


def check_literal(file: Path, config: Mapping[str, Any]) -> None:
    """See that what a checkpoint says is plain values, in which nothing stands for something else.

    A run records its configuration with every interpolation resolved. One that is there all the same would be resolved
    on this machine, by its environment variables for instance.

    Args:
        file: Where the configuration comes from, for messages.
        config: As YAML or JSON gave it.

    Raises:
        UserError: A text holds an interpolation, a value is no text, number, list or mapping, or there are too many.
    """
    _check(file, "", config, iter(range(MOST_VALUES)), 0)


def _check(file: Path, key: str, value: Any, budget: Iterator[int], depth: int) -> None:
    if next(budget, None) is None or depth > DEEPEST:
        raise UserError(f"{file} holds more than any configuration", key=str(file), fix=FIX)
    if isinstance(value, str):
        if "${" in value:
            raise UserError(f"{file}: {key} holds an interpolation, {value[:80]!r}", key=key, fix=FIX)
    elif isinstance(value, dict | list):
        for name, child in value.items() if isinstance(value, dict) else enumerate(value):
            inner = f"{key}.{name}" if key else str(name)
            _check(file, inner, name, budget, depth + 1)
            _check(file, inner, child, budget, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float):
        kind = type(value).__name__
        raise UserError(f"{file}: {key} is a {kind}, which no configuration of a run holds", key=key, fix=FIX)
