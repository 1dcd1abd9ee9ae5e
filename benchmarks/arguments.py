"""The command lines of benchmarks: keys of their own among those of `robolearn-train`."""

import sys
from collections.abc import Mapping


def split(defaults: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The benchmark's own keys with their values, and the other arguments of the command line, as they are."""
    own, overrides = dict(defaults), []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(argument)
    return own, overrides
