"""The one exception that means: the user can mend this, and the message says how."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the configuration, the data or the surroundings of a run.

    The message is one sentence that names the key or the file and the way out. Entry points print it
    without a traceback and exit with status 2.
    """


def closest_match(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The most similar of `names`, or None when none is similar."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`` (did you mean 'horizon'?)``, or nothing when no name is similar."""
    match = closest_match(name, names)
    return f" (did you mean '{match}'?)" if match else ""
