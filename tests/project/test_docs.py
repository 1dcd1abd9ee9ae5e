"""README.md and docs/: every command composes, and what they name exists.

A command that needs neither a network nor a GPU runs as it stands, only smaller: those of README.md in CI, those of
all pages in the long form.
"""

import os
import pkgutil
import re
import shlex
import sys
from pathlib import Path

import pytest
from fakes import lerobot, processes
from fakes.datasets import write_dataset
from fakes.docs import PAGES, ROOT, commands, smaller

from robolearn.config.compose import compose, parse

NAMING = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "conf").rglob("*.yaml"))]
MODULE = re.compile(r"(?<![\w${/.])robolearn(?:\.[A-Za-z_]\w*)+")
FILE = re.compile(r"(?<![\w/])(?:src/)?robolearn/[\w/.]*\w|(?:tests|scripts|benchmarks)/[\w/]+\.(?:py|sh)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages' commands run, one after the other, as a reader's would."""
    folder = tmp_path_factory.mktemp("docs")
    write_dataset(folder / "my_dataset", length=30)
    write_dataset(folder / "my_other_dataset", length=30, seed=1)
    lerobot.write(folder / "diffusion_pusht", lerobot.config("diffusion"))
    write_dataset(folder / "my_keypoints", length=60, image_dtype=None, keypoints=True)
    return folder


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_training_commands_compose(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for command in commands(page):
        name, *argv = shlex.split(smaller(command))
        from_checkpoint = any(text.startswith("policy.path=") for text in argv)
        if name == "robolearn-train" and not from_checkpoint and not {"--help", "--cfg"} & set(argv):
            assert compose(parse(argv, "train"), "train"), command


def _runs(page: Path) -> object:
    marks = pytest.mark.slow if page.name == "README.md" else pytest.mark.long
    return pytest.param(page, marks=marks, id=page.name)


@pytest.mark.pusht
@pytest.mark.parametrize("page", map(_runs, PAGES))
def test_commands_run(page: Path, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands(page):
        done = processes.run(smaller(command), cwd=folder, env=os.environ | {"PATH": path})
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"


@pytest.mark.parametrize("file", NAMING, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_and_files_that_are_named_exist(file: Path) -> None:
    text = file.read_text()
    for name in sorted(set(MODULE.findall(text))):
        pkgutil.resolve_name(name)
    for name in sorted(set(FILE.findall(text))):
        root = ROOT / "src" if name.startswith("robolearn/") else ROOT
        assert (root / name).exists(), name
