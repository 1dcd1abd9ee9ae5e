"""The check of a configuration against the signatures of what it builds, and of its root keys against their schema.

Types and ranges are those of the annotations: ``int``, ``Literal["a", "b"]``, ``Annotated[int, Ge(1)]``. Pydantic
compares; the sentences are ours.
"""

import functools
import inspect
import json
import logging
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf

from robolearn.config.schema import CONFIG_GROUPS, CONFIG_ONLY_KEYS, RUNTIME_ARGS
from robolearn.errors import UserError, did_you_mean, one_line

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Origin = Callable[[str], str | None]
"""Where a dotted key got its value: a file's name or "the command line"; None when unknown."""


def _unknown(key: str) -> None:
    return None


def refuse(errors: Sequence[UserError]) -> None:
    """Raise the first of the errors, if there are any; its message names the keys of the others.

    Raises:
        UserError: There are some.
    """
    if not errors:
        return
    first, *others = errors
    if not others:
        raise first
    keys = "; ".join(str(error.key) for error in others)
    raise UserError(f"{str(first).rstrip('.')} (and {len(others)} more: {keys}).", key=first.key)


def check_roots(schema: type, cfg: DictConfig | Mapping[str, Any], origin: Origin = _unknown) -> list[UserError]:
    """Compare the root keys with the annotations of a schema.

    Args:
        schema: A dataclass of `robolearn.config.schema`.
        cfg: The composed configuration.
        origin: Tells where a key came from, for the messages.
    """
    hints, tree = typing.get_type_hints(schema, include_extras=True), _tree(cfg)
    found = (check_value(key, value, _choice(hints[key]), None, origin) for key, value in tree.items() if key in hints)
    return [error for error in found if error]


def _choice(hint: Any) -> Any:
    """A Literal among an annotation's metadata in the place of the type that OmegaConf needs to see."""
    return next((extra for extra in getattr(hint, "__metadata__", ()) if typing.get_origin(extra) is Literal), hint)


def check_targets(cfg: DictConfig | Mapping[str, Any], origin: Origin = _unknown) -> list[UserError]:
    """Compare every node that names a ``_target_`` with the signature of what it names.

    Args:
        cfg: The composed configuration.
        origin: Tells where a key came from, for the messages.

    Returns:
        An error for each key the target does not take, each value of another type or range than annotated, each
        required argument that is missing, each target that cannot be imported, and each group without a target.
    """
    tree = _tree(cfg)
    errors = []
    for key in CONFIG_GROUPS:
        node = tree.get(key)
        if node is not None and not (isinstance(node, dict) and "_target_" in node):
            first = f"{key}.{next(iter(node))}" if isinstance(node, dict) and node else key
            message = f"{_place(first, origin)}: {key} has no _target_, which names the class to build"
            errors.append(UserError(message, key=key, fix=f"choose an option with {key}=NAME"))
    for key, node in _targets("", tree):
        errors += _check_node(key, node, origin)
    return errors


def _tree(cfg: DictConfig | Mapping[str, Any]) -> Mapping[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg  # type: ignore[return-value]


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


def _check_node(key: str, node: dict[str, Any], origin: Origin) -> list[UserError]:
    try:
        target = find_target(f"{key}._target_", node["_target_"], origin)
    except UserError as error:
        return [error]
    try:
        signature = inspect.signature(target, eval_str=True)
    except NameError:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # some targets written in C have no signature
        return []
    name = node["_target_"].rpartition(".")[2]
    supplied = RUNTIME_ARGS.get(key, frozenset())
    parameters = {p.name: p for p in signature.parameters.values() if p.kind is not p.VAR_POSITIONAL}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    accepted = [p.name for p in parameters.values() if p.kind is not p.VAR_KEYWORD and p.name not in supplied]
    errors = []
    for argument, value in node.items():
        path = f"{key}.{argument}"
        if (argument.startswith("_") and argument.endswith("_")) or argument in CONFIG_ONLY_KEYS.get(key, ()):
            continue
        if argument in supplied:
            message = f"{_place(path, origin)}: {name} gets '{argument}' from the run, so remove this key."
            errors.append(UserError(message, key=path))
        elif argument in accepted:
            if error := check_value(path, value, parameters[argument].annotation, name, origin):
                errors.append(error)
        elif not takes_any:
            message = f"{_place(path, origin)}: {name} takes no '{argument}'{did_you_mean(argument, accepted)}."
            errors.append(UserError(message, key=path))
    for argument in accepted:
        if parameters[argument].default is inspect.Parameter.empty and argument not in node and "_args_" not in node:
            path = f"{key}.{argument}"
            errors.append(UserError(f"{path}: {name} needs '{argument}'; add +{path}=VALUE.", key=path))
    return errors


def find_target(key: str, target: Any, origin: Origin = _unknown) -> Callable[..., Any]:
    """What a ``_target_`` names.

    Args:
        key: For the message.
        target: A dotted name.
        origin: For the message.

    Raises:
        UserError: It cannot be imported, or Hydra refuses it.
    """
    from hydra.utils import get_object

    if not isinstance(target, str) or not target:
        raise UserError(f"{_place(key, origin)} takes the dotted name of a class or function, not {target!r}.", key=key)
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it would log the error below as well
    place = _given(key, target, origin)
    try:
        found = get_object(target)
    except Exception as error:  # importing a user's module may raise anything, and all of it means the same here
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"{place} cannot be imported: {_misspelt(target) or one_line(cause)}",
            key=key,
            fix="give a dotted name of a class or function that Python finds (set PYTHONPATH to the folder of a module "
            "of your own)",
        ) from error
    if not callable(found):
        raise UserError(f"{place} is neither a class nor a function.", key=key)
    return found


def _given(key: str, value: Any, origin: Origin) -> str:
    source = origin(key)
    return f"{key}={_yaml(value)} ({source})" if source else f"{key}={_yaml(value)}"


def _misspelt(target: str) -> str | None:
    """What a module that was found has in place of a name that it lacks."""
    module, _, name = target.rpartition(".")
    found = sys.modules.get(module)
    if found is None or hasattr(found, name):
        return None
    return f"{module} has no '{name}'{did_you_mean(name, vars(found))}"


def check_value(
    key: str, value: Any, annotation: Any, taker: str | None = None, origin: Origin = _unknown
) -> UserError | None:
    """Compare one value from YAML with an annotation.

    Args:
        key: Its dotted key.
        value: In plain containers.
        annotation: Of the argument or root key that gets it. One that Pydantic cannot handle allows everything.
        taker: What takes it, for the message.
        origin: For the message.

    Returns:
        What is wrong with the value, if anything is: its type, or what it is out of range of.
    """
    if annotation is inspect.Parameter.empty or isinstance(annotation, str) or _is_built(value):
        return None
    from pydantic import ValidationError

    try:
        adapter = _adapter(annotation)
    except Exception:  # an annotation of a user's may be anything
        return None
    try:
        # As JSON: what YAML writes as a list may become a tuple, and true is no integer.
        adapter.validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        details = error.errors(include_url=False)
        for detail in details:
            if detail["type"] in BOUNDS:
                path, part = _within(key, value, detail["loc"])
                bound = BOUNDS[detail["type"]].format(**{name: _short(x) for name, x in detail.get("ctx", {}).items()})
                null = ", or null" if path == key and type(None) in _alternatives(annotation) else ""
                return UserError(f"{_given(path, part, origin)} must be {bound}{null}.", key=path)
        path, part = _within(key, value, details[0]["loc"]) if isinstance(value, dict) else (key, value)
        given = f"'{part}'" if isinstance(part, str) else _yaml(part)
        near = did_you_mean(str(part), [str(choice) for choice in _choices(annotation)])
        takes = f"{_place(path, origin)}: {taker} takes" if taker else f"{_place(path, origin)} takes"
        return UserError(f"{takes} {describe(annotation)}, not {given}{near}.", key=path)
    return None


@functools.cache
def _adapter(annotation: Any) -> "TypeAdapter[Any]":
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False))


def _within(key: str, value: Any, location: Sequence[int | str]) -> tuple[str, Any]:
    """The dotted key and the value of an element; parts of a location that only name a type are passed over."""
    for part in location:
        if isinstance(value, list) and isinstance(part, int):
            key, value = f"{key}[{part}]", value[part]
        elif isinstance(value, dict) and part in value:
            key, value = f"{key}.{part}", value[part]
    return key, value


def _short(number: Any) -> Any:
    return f"{number:g}" if isinstance(number, float) else number


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _is_built(value: Any) -> bool:
    """Whether the value holds nodes that become objects before the target gets them."""
    return next(_targets("", value), None) is not None


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(leaf for option in typing.get_args(annotation) for leaf in _alternatives(option))
    return (annotation,)


def _choices(annotation: Any) -> list[Any]:
    return [
        choice
        for option in _alternatives(annotation)
        if typing.get_origin(option) is Literal
        for choice in typing.get_args(option)
    ]


BOUNDS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "greater than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "finite",
    "string_too_short": "a string of at least {min_length} characters",
    "too_short": "a list of at least {min_length} items",
}
"""What a value must be, by Pydantic's type of error."""

WORDS: dict[Any, tuple[str, str]] = {
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
}


def describe(annotation: Any, plural: bool = False) -> str:
    """The values an annotation allows, in a user's words: ``a list of integers or null``."""
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
