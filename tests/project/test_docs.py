"""Every command of README.md and docs/ that needs neither a network nor a GPU runs as it stands, only smaller."""

import os
import sys
from pathlib import Path

import pytest
from fakes import lerobot, processes
from fakes.datasets import write_dataset
from fakes.docs import PAGES, commands, smaller


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


@pytest.mark.slow
@pytest.mark.pusht
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of(page: Path, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands(page):
        done = processes.run(smaller(command), cwd=folder, env=os.environ | {"PATH": path})
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
