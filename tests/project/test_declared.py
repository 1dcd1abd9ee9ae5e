"""Nothing is imported that is only there because something else happened to bring it along."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = [file for name in ("src", "scripts", "tests", "benchmarks", "docs") for file in (ROOT / name).rglob("*.py")]
# A decoder that is used where somebody has installed it.
OPTIONAL = {"torchcodec"}


def normal(name: str) -> str:
    """A distribution's name as package indices compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    return {normal(re.split(r"[^\w.-]", text, maxsplit=1)[0]) for part in lists for text in part}


def imported(file: Path) -> Iterator[str]:
    """The packages that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def test_every_import_is_of_a_dependency() -> None:
    ours = {file.stem for file in CODE} | {"robolearn", "hydra_plugins", "fakes"}
    known = ours | sys.stdlib_module_names | OPTIONAL
    distributions, allowed = packages_distributions(), declared()
    strangers = {
        f"{file.relative_to(ROOT)}: {name}"
        for file in CODE
        for name in imported(file)
        if name not in known and not allowed & {normal(found) for found in distributions.get(name, [name])}
    }
    assert strangers == set()
