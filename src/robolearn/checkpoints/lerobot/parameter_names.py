"""LeRobot's parameter names in our terms and back, by the table of each policy."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from robolearn.checkpoints.lerobot.registry import get_interop

STATISTIC = re.compile(r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_(.*)\.(\w+)")


def rename(kind: str) -> Callable[[str], tuple[str, str] | None]:
    """A function from a LeRobot parameter name to ("policy" or "normalizer", our name), None for constants."""
    interop = get_interop(kind)

    def to_ours(name: str) -> tuple[str, str] | None:
        if stat := STATISTIC.fullmatch(name):
            return "normalizer", f"stats.{stat[1]}.{stat[2]}"
        if interop.constant_names and re.search(interop.constant_names, name):
            return None
        for theirs, ours in interop.names:
            name = _replaced(theirs, ours, name)
        return "policy", name

    return to_ours


def rename_back(kind: str, options: Mapping[str, Any]) -> Callable[[str], str]:
    """A function from our name of a policy's parameter to LeRobot's.

    Args:
        kind: LeRobot's type of the policy.
        options: The node ``policy``.
    """
    interop = get_interop(kind)
    names = interop.export_names(options) if interop.export_names else interop.names

    def to_theirs(name: str) -> str:
        for theirs, ours in reversed(names):
            name = _replaced(ours, theirs, name)
        return name

    return to_theirs


def statistic_names(name: str) -> list[str]:
    """LeRobot's names of a normaliser's statistic; the action's is stored twice."""
    _, key, stat = name.split(".")
    owners = ("normalize_targets", "unnormalize_outputs") if key == "action" else ("normalize_inputs",)
    return [f"{owner}.buffer_{key}.{stat}" for owner in owners]


def _replaced(old: str, new: str, name: str) -> str:
    pattern, template = _compiled(old, new)
    return pattern.sub(template, name)


@cache
def _compiled(old: str, new: str) -> tuple[re.Pattern[str], str]:
    body = re.escape(old.strip("^$")).replace(r"\#", r"(\d+)")
    start, end = "^" if old.startswith("^") else "", "$" if old.endswith("$") else ""
    template, group = new.strip("^$"), 1
    while "#" in template:
        template = template.replace("#", rf"\g<{group}>", 1)
        group += 1
    return re.compile(start + body + end), template
