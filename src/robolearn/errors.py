"""The one exception that means: the user can fix this, and the message says how. Imports nothing of the project."""

import difflib
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


def one_line(error: BaseException) -> str:
    """The message of an exception on one line, without a full stop; its class where it has no message."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
