"""The policies that LeRobot interop knows: one ``<kind>_interop.py`` in this folder each; imports no policy by itself.

A kind is LeRobot's type of a policy and the name of our option of the group policy.
"""

import pkgutil
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from robolearn.checkpoints.lerobot.interop import Interop
from robolearn.errors import UserError, did_you_mean
from robolearn.system.paths import conf_dir

if TYPE_CHECKING:
    from robolearn.policies.base import Policy

SUFFIX = "_interop"


@cache
def kinds() -> tuple[str, ...]:
    """LeRobot's types of policies that can be read."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return tuple(sorted(m.name.removesuffix(SUFFIX) for m in modules if m.name.endswith(SUFFIX)))


def get_interop(kind: str, where: str = "config.json") -> Interop:
    """The description of a kind.

    Args:
        kind: LeRobot's type of the policy.
        where: The file that says so, for messages.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in kinds():
        raise UserError(
            f"{where}: policies of LeRobot's type '{kind}' cannot be read{did_you_mean(str(kind), kinds())}; "
            f"those that can: {', '.join(kinds())}.",
            key=where,
        )
    return import_module(f"{__package__}.{kind}{SUFFIX}").INTEROP


@cache
def default_options(group: str, name: str) -> dict[str, Any]:
    """The keys of one of our configuration files, such as those of the policy ``act``."""
    content = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    return content.get(group, content)


def policy_class(kind: str) -> "type[Policy]":
    """The class of a kind, imported now."""
    module, _, name = default_options("policy", kind)["_target_"].rpartition(".")
    return getattr(import_module(module), name)


def policy_kind(policy: "Policy") -> str | None:
    """The kind whose class a policy has; None: LeRobot has no such policy."""
    return next((kind for kind in kinds() if type(policy) is policy_class(kind)), None)
