"""The check of every node of a configuration against the signature of what it builds."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

from robolearn.config.schema import CONFIG_GROUPS, CONFIG_ONLY_KEYS, RUNTIME_ARGS
from robolearn.errors import UserError, did_you_mean

Origin = Callable[[str], str | None]
"""Where a dotted key got its value: a file's name or "the command line"; None when unknown."""


def check_targets(cfg: DictConfig | Mapping[str, Any], origin: Origin = lambda key: None) -> list[str]:
    """Compare every node that names a ``_target_`` with the signature of what it names.

    Args:
        cfg: The composed configuration.
        origin: Tells where a key came from, for the messages.

    Returns:
        A sentence for each key the target does not take, each value of another type than annotated, each required
        argument that is missing, each target that cannot be imported, and each group without a target.
    """
    tree = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    messages = []
    for key in CONFIG_GROUPS:
        node = tree.get(key)  # type: ignore[union-attr]
        if node is not None and not (isinstance(node, dict) and "_target_" in node):
            first = f"{key}.{next(iter(node))}" if isinstance(node, dict) and node else key
            messages.append(
                f"{_place(first, origin)}: {key} has no _target_, which names the class to build; choose an option "
                f"with {key}=NAME."
            )
    for key, node in _targets("", tree):
        messages += _check_node(key, node, origin)
    return messages


def _targets(key: str, node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from _targets(f"{key}.{name}" if key else str(name), child)
    elif isinstance(node, list):
        for index, child in enumerate(node):
            yield from _targets(f"{key}[{index}]", child)


def _place(key: str, origin: Origin) -> str:
    source = origin(key)
    return f"{key} ({source})" if source else key


def _check_node(key: str, node: dict[str, Any], origin: Origin) -> list[str]:
    try:
        target = find_target(f"{key}._target_", node["_target_"], origin)
    except UserError as error:
        return [str(error)]
    try:
        signature = inspect.signature(target, eval_str=True)
    except NameError:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some targets written in C tell nothing about their arguments
        return []
    name = node["_target_"].rpartition(".")[2]
    supplied = RUNTIME_ARGS.get(key, frozenset())
    parameters = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in supplied]
    messages = []
    for argument, value in node.items():
        path = f"{key}.{argument}"
        if (argument.startswith("_") and argument.endswith("_")) or argument in CONFIG_ONLY_KEYS.get(key, ()):
            continue
        if argument in supplied:
            messages.append(f"{_place(path, origin)}: {name} gets '{argument}' from the run, so remove this key.")
        elif argument in accepted:
            messages += _check_value(path, value, parameters[argument].annotation, name, origin)
        elif not takes_any:
            messages.append(f"{_place(path, origin)}: {name} takes no '{argument}'{did_you_mean(argument, accepted)}.")
    for argument in accepted:
        if parameters[argument].default is inspect.Parameter.empty and argument not in node and "_args_" not in node:
            messages.append(f"{key}.{argument}: {name} needs '{argument}'; add +{key}.{argument}=VALUE.")
    return messages


def find_target(key: str, target: Any, origin: Origin = lambda key: None) -> Callable[..., Any]:
    """What a ``_target_`` names.

    Args:
        key: For the message.
        target: A dotted name.
        origin: For the message.

    Raises:
        UserError: It cannot be imported, or Hydra refuses it.
    """
    from hydra._internal.utils import _locate

    source = origin(key)
    place = f"{key}={target} ({source})" if source else f"{key}={target}"
    try:
        found = _locate(target)
    except Exception as error:  # importing a user's module may raise anything, and all of it means the same here
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = _misspelt(target) or " ".join(str(cause).split()) or type(cause).__name__
        raise UserError(
            f"{place} cannot be imported: {reason.rstrip('.')}; give a dotted name of a class or function that Python "
            "finds (set PYTHONPATH to the folder of a module of your own)."
        ) from error
    if not callable(found):
        raise UserError(f"{place} is neither a class nor a function.")
    return found


def _misspelt(target: str) -> str | None:
    """What a module that was found has in place of a name that it lacks."""
    module, _, name = target.rpartition(".")
    found = sys.modules.get(module)
    if found is None or hasattr(found, name):
        return None
    return f"{module} has no '{name}'{did_you_mean(name, vars(found))}"


def _check_value(path: str, value: Any, annotation: Any, name: str, origin: Origin) -> list[str]:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str) or _builds(value):
        return []
    if matches(value, annotation):
        return []
    text = f"'{value}'" if isinstance(value, str) else "null" if value is None else _yaml(value)
    near = did_you_mean(str(value), [str(choice) for choice in _choices(annotation)])
    return [f"{_place(path, origin)}: {name} takes {describe(annotation)}, not {text}{near}."]


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _builds(value: Any) -> bool:
    """Whether the value holds nodes that become objects before the target gets them."""
    return next(_targets("", value), None) is not None


def matches(value: Any, annotation: Any) -> bool:
    """Whether a value from YAML (lists, no tuples) may be given where the annotation stands."""
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    for candidate in (value, _as_tuples(value)):
        try:
            check_type(candidate, annotation, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            continue
        # To Python true is an int and a text a sequence of texts; to a user they are not.
        return type(value) not in (bool, str) or _takes(type(value), annotation)
    return False


def _as_tuples(value: Any) -> Any:
    return tuple(_as_tuples(item) for item in value) if isinstance(value, list) else value


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(leaf for option in typing.get_args(annotation) for leaf in _alternatives(option))
    return (annotation,)


def _takes(kind: type, annotation: Any) -> bool:
    named = any(option in (kind, Any, object) for option in _alternatives(annotation))
    return named or any(type(choice) is kind for choice in _choices(annotation))


def _choices(annotation: Any) -> list[Any]:
    return [
        choice
        for option in _alternatives(annotation)
        if typing.get_origin(option) is Literal
        for choice in typing.get_args(option)
    ]


WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
}


def describe(annotation: Any, plural: bool = False) -> str:
    """The values an annotation allows, in a user's words: ``a list of whole numbers or null``."""
    options = _alternatives(annotation)
    plain = [option for option in options if option in WORDS or typing.get_origin(option)]
    options = plain or options  # of torch's float | Tensor, a file can only hold the number
    if len(options) > 1:
        return " or ".join(dict.fromkeys(describe(option, plural) for option in options))
    annotation = next(iter(options))
    if annotation in WORDS:
        return WORDS[annotation][plural]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"'{choice}'" if isinstance(choice, str) else str(choice) for choice in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        keys, values = (describe(argument, plural=True) for argument in arguments)
        return f"a mapping of {keys} to {values}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        inner = tuple(dict.fromkeys(argument for argument in arguments if argument is not Ellipsis))
        count = len(arguments) if origin is tuple and Ellipsis not in arguments else None
        items = " or ".join(dict.fromkeys(describe(argument, plural=True) for argument in inner))
        return f"a list of {count} {items}" if count else f"a list of {items}"
    return getattr(annotation, "__name__", str(annotation))
