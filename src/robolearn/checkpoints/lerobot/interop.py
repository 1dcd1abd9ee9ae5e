"""What LeRobot interop needs to know about one policy; each policy describes itself in its ``<kind>_interop.py``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Names = Sequence[tuple[str, str]]
"""Pairs (LeRobot's, ours) that are replaced in a parameter name one after the other, and back from the last to the
first. "^" and "$" are the ends of a name, "#" is an integer; everything else stands for itself."""


def _no_constants(policy: Any, options: Mapping[str, Any]) -> "dict[str, Tensor]":
    return {}


def _no_objection(options: Mapping[str, Any]) -> None:
    pass


def _no_options(folder: Path) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Interop:
    """One policy as LeRobot publishes it.

    The functions take the options of the node ``policy``, and import torch and policy classes when called only.

    Attributes:
        names: Its parameter names.
        optimizer: The option of the group optimizer that LeRobot's preset changes.
        optimizer_keys: The optimizer's keys that LeRobot's config.json has, there with ``optimizer_`` before them.
        type_marker: A field that only this policy had in 2024, when config.json had no type; None: it is younger.
        scheduler: The option of the group scheduler that LeRobot's preset changes.
        scheduler_keys: LeRobot's fields of the schedule and our keys.
        param_groups: Options of parameter groups that LeRobot does not configure.
        param_group_fields: LeRobot's fields of parameter groups, each with our group and its key.
        reference: Options with which the policy computes what LeRobot's does, its known errors included; recorded runs
            are compared with these.
        inference_overrides: Those of them that change actions, so that a checkpoint acts as it does in LeRobot.
        own_keys: Our keys that LeRobot has no field for.
        ignored_fields: LeRobot's fields that do not change what the policy computes.
        unsupported_fields: LeRobot's fields of an implementation that cannot be read, and why.
        constant_names: A regular expression for LeRobot's tensors that have no parameter here.
        constants: The tensors of these names, for a policy and its options.
        tied_weights: Names that safetensors dropped when LeRobot saved, and under which name the tensor is stored.
        export_names: The part of `names` that holds for a policy of the given options; None: all of it.
        has_processors: LeRobot from 0.4 on reads the exported weights, with statistics in processor files.
        check_export: Raises a UserError where LeRobot cannot act as the policy does, warns where it acts differently.
        checkpoint_options: Options that depend on how far LeRobot had trained the checkpoint in a folder.
    """

    names: Names
    optimizer: str
    optimizer_keys: Sequence[str]
    type_marker: str | None = None
    scheduler: str = "constant"
    scheduler_keys: Mapping[str, str] = field(default_factory=dict)
    param_groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    param_group_fields: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    inference_overrides: Mapping[str, Any] = field(default_factory=dict)
    own_keys: frozenset[str] = frozenset()
    ignored_fields: frozenset[str] = frozenset()
    unsupported_fields: Mapping[str, str] = field(default_factory=dict)
    constant_names: str | None = None
    constants: "Callable[[Any, Mapping[str, Any]], dict[str, Tensor]]" = _no_constants
    tied_weights: Mapping[str, str] = field(default_factory=dict)
    export_names: Callable[[Mapping[str, Any]], Names] | None = None
    has_processors: bool = True
    check_export: Callable[[Mapping[str, Any]], None] = _no_objection
    checkpoint_options: Callable[[Path], dict[str, Any]] = _no_options
