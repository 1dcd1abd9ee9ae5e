"""The exception for mistakes that a user can fix, and the phrases of its messages.

This module imports no other of robolearn, and only it looks for similar names or shortens other exceptions' messages.
"""

import difflib
import traceback
from collections.abc import Collection, Iterable


class UserError(Exception):
    """A mistake in the configuration, the data or the environment of a run.

    The message is one sentence that names the key or the file and how to fix it. Entry points print it without a
    traceback and exit with status 2.

    Args:
        message: What is wrong, with the key or the file in it.
        key: The dotted key, or the file, that it is about; tests and callers look at this, not at the wording.
        fix: What to do about it; becomes the end of the sentence.
    """

    def __init__(self, message: str, *, key: str | None = None, fix: str | None = None) -> None:
        super().__init__(f"{message.rstrip('.')}; {fix.rstrip('.')}." if fix else message)
        self.key, self.fix = key, fix


def at_least(minimum: float, **values: float | None) -> None:
    """Refuse values below a minimum; None passes.

    Args:
        minimum: The smallest value allowed.
        values: By dotted key, given as ``**{"policy.horizon": horizon}``.

    Raises:
        UserError: One is smaller, or not a number.
    """
    for key, value in values.items():
        if value is not None and not value >= minimum:
            raise UserError(f"{key}={value} must be at least {minimum}.", key=key)


def one_of(key: str, value: str, choices: Collection[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        UserError: It is none of them; the nearest is named.
    """
    if value not in choices:
        raise UserError(f"{key}={value} is none of {', '.join(choices)}{did_you_mean(value, choices)}.", key=key)


def closest_match(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `names`, or None when none is similar."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`` (did you mean 'horizon'?)``, or nothing when no name is similar."""
    match = closest_match(name, names, cutoff)
    return f" (did you mean '{match}'?)" if match else ""


def one_line(error: BaseException, limit: int | None = None) -> str:
    """The message of an exception on one line, without a full stop; its class where it has no message.

    Args:
        error: What was raised.
        limit: The most characters of the message.
    """
    return " ".join(str(error).split())[:limit].rstrip(".") or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without a full stop; its class where it has no message.

    For errors of libraries such as torch and FFmpeg, whose further lines are a report.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")


def with_class(error: BaseException) -> str:
    """The class and the first line of an exception's message, as the last line of a traceback shows them."""
    return f"{type(error).__name__}: {first_line(error)}" if str(error).strip() else type(error).__name__


def describe_exception(error: BaseException) -> str:
    """The class and message of an exception from a user's own code, and the file and line that raised it."""
    message = one_line(error) if str(error).strip() else "no message"
    if len(message) > 300:
        message = message[:300] + "…"
    frames = traceback.extract_tb(error.__traceback__)
    location = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{location}"
