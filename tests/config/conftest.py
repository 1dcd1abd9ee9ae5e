"""Compose and check as the entry points do, in a folder of the test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from robolearn.config.compose import Job, compose, parse

HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def composed() -> Callable[..., list[Job]]:
    """The jobs of a command line."""

    def run(*argv: str) -> list[Job]:
        return compose(parse(argv, "train"), "train")

    return run


@pytest.fixture
def own(tmp_path: Path) -> Callable[[dict[str, str]], list[str]]:
    """Write configuration files of a user's own; returns the option that adds their folder."""

    def write(files: dict[str, str]) -> list[str]:
        for name, text in files.items():
            file = tmp_path / "conf" / f"{name}.yaml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return ["--config-dir", str(tmp_path / "conf")]

    return write
