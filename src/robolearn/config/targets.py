"""Look a dotted name up in the files of its modules, so that a misspelt one runs no module for nothing."""

import ast
import pkgutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from robolearn.errors import did_you_mean

WRITERS = {"globals", "locals", "vars", "exec"}
"""What code calls to set names that its text does not show."""


def missing_part(target: str) -> str | None:
    """What a dotted name lacks to be one of a class or a function, in words; imports nothing.

    Returns:
        None where nothing is missing, or where only importing can tell.
    """
    parts = target.split(".")
    if not all(part.isidentifier() for part in parts):
        return f"'{target}' is no dotted name"
    module, depth, spec = "", 0, None
    for part in parts:
        found = _find(f"{module}.{part}".lstrip("."), spec)
        if found is None:
            break
        module, depth, spec = f"{module}.{part}".lstrip("."), depth + 1, found
    if spec is None:
        names = [each.name for each in pkgutil.iter_modules() if not each.name.startswith("_")]
        return f"there is no module '{parts[0]}'{did_you_mean(parts[0], names)}"
    if depth == len(parts):
        return f"'{target}' is a module"
    return _lacks(module, spec, parts[depth])


def _find(name: str, parent: ModuleSpec | None) -> ModuleSpec | None:
    """Where a module lies; `importlib.util.find_spec` would import the packages above it."""
    loaded = sys.modules.get(name)
    if loaded is not None and isinstance(getattr(loaded, "__spec__", None), ModuleSpec):
        return loaded.__spec__
    path = parent.submodule_search_locations if parent else None
    if parent and path is None:
        return None
    for finder in sys.meta_path:
        if (find := getattr(finder, "find_spec", None)) and (spec := find(name, path)):
            return spec
    return None


def _lacks(module: str, spec: ModuleSpec, name: str) -> str | None:
    """The sentence for a name that a module has not; None where it has, or may have."""
    loaded = sys.modules.get(module)
    names = set(vars(loaded)) if loaded else _defined(spec)
    if names is None or name in names or (loaded and hasattr(loaded, name)):
        return None
    inside = pkgutil.iter_modules(spec.submodule_search_locations) if spec.submodule_search_locations else ()
    return f"{module} has no '{name}'{did_you_mean(name, sorted({*names, *(each.name for each in inside)}))}"


def _defined(spec: ModuleSpec) -> set[str] | None:
    """The names that a module's file sets; None where it does not show them."""
    if spec.origin is None and spec.submodule_search_locations is not None:  # a folder without __init__.py
        return set()
    if spec.origin is None or not spec.origin.endswith(".py"):  # built in or compiled
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return None
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif (
            isinstance(node, ast.Name)
            and node.id in WRITERS
            or isinstance(node, ast.Attribute)
            and node.attr == "modules"
        ):
            return None
    return None if found & {"*", "__getattr__"} else found
