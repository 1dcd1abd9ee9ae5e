"""JSON as its standard has it: no number that is none is ever written, and what is damaged is told by its file."""

import json
import math
from pathlib import Path
from typing import Any

from robolearn.errors import one_line
from robolearn.system.files import write_text


class DamagedFileError(Exception):
    """A file that does not hold what was written there; the message names it and the reason."""


def to_json(content: Any, **options: Any) -> str:
    """Strict JSON, in which a NaN or an infinity is null.

    Args:
        content: Plain containers.
        options: Of `json.dumps`.
    """
    try:
        return json.dumps(content, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(content), allow_nan=False, **options)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON atomically: readers see the old or the new content, never a part."""
    write_text(path, to_json(content, indent=2) + "\n")


def parse_json(content: str | bytes) -> Any:
    """What JSON says, a NaN or an infinity as None.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(content, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        FileNotFoundError: There is none.
        DamagedFileError: It can't be read, or holds something else.
    """
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged ({reason(error)})") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{path} is damaged (it holds no JSON object)")
    return content


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def reason(error: Exception) -> str:
    """Why a file could not be read, without its name, which the sentence has already."""
    return getattr(error, "strerror", None) or one_line(error, 100)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content
