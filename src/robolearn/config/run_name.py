"""What was given on the command line, in a form in which equal things are equal, and the run's name made of it."""

import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

LONGEST = 80
"""Characters of a name, without its hash."""

NO_PART = ("resume",)
"""Keys that say how a run is started, not which one it is."""


def canonical(overrides: Iterable[str]) -> dict[str, str]:
    """The overrides by their key, sorted: ``optimizer.lr=1e-4`` and ``+optimizer.lr=0.0001`` are the same."""
    pairs = dict(_pair(text) for text in overrides)
    return {key: pairs[key] for key in sorted(pairs) if key not in NO_PART}


def run_name(overrides: Iterable[str], hidden: Iterable[str] = (), sweep: str | None = None) -> str:
    """The name of a run's folder in its sweep, such as ``optimizer.lr-0.0001_seed-1_5d41402a``.

    The hash depends on what was asked for alone, not on the order or on which other runs the sweep has: a sweep that
    is started again finds its runs, and one whose grid grew finds those it has. The characters need no quoting in a
    shell or in Hydra's grammar.

    Args:
        overrides: As Hydra gives them to the run.
        hidden: Keys that the readable part leaves out, because all runs have the same.
        sweep: The sweep's folder; where it holds the run already, under any readable part, that is its name.
    """
    pairs = canonical(overrides)
    digest = hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:8]
    for found in Path(sweep).glob(f"*{digest}") if sweep else ():
        return found.name
    hidden = set(hidden)
    shown = "_".join(f"{key}-{_plain(value)}" for key, value in pairs.items() if key not in hidden)
    return f"{shown[:LONGEST].rstrip('-_.')}_{digest}" if shown else digest


def _plain(value: str) -> str:
    """Without what a shell or Hydra would take for something else; of paths the end."""
    value = "/".join(value.split("/")[-1:])
    return re.sub(r"[^\w.+-]+", "-", value.strip("[]{}'\""))


@functools.cache
def _pair(text: str) -> tuple[str, str]:
    override = OverridesParser.create().parse_override(text)
    key = override.get_key_element().lstrip("+")
    return key, override.get_value_element_as_str() if not override.is_delete() else ""
