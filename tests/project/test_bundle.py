"""The bundle for machines without a network, of a small project in robolearn's stead."""

import sys
from pathlib import Path

import pytest
from fakes import processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import bundle

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "1.0"
[project.scripts]
tiny = "tiny:main"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "tiny/__init__.py").write_text(f"def main() -> None:\n    print('here')\n\nFILL = {'x' * 5000!r}\n")
    return folder


def build(project: Path, *options: str) -> Path:
    folder = project.parent / "bundle"
    bundle.main(["build", str(folder), "--project", str(project), *options, "--", "--no-build-isolation", "--no-index"])
    return folder


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--part-mb", "0.005"], marks=pytest.mark.slow, id="parts"),
        pytest.param(["--strip", "--compress"], marks=pytest.mark.long, id="compressed"),
    ],
)
def test_a_bundle_installs_where_it_is_carried(project: Path, options: list[str]) -> None:
    folder = build(project, *options)
    if "--part-mb" in options:
        assert sorted(path.stat().st_size for path in folder.glob("bundle.0*"))[-1] == 5000
        assert len(list(folder.glob("bundle.0*"))) > 1
    carried = folder.rename(project.parent / "carried")
    venv = project.parent / "venv"
    command = [sys.executable, str(carried / "bundle.py"), "install", str(carried), str(venv)]
    done = processes.run(command)
    assert done.returncode == 0, done.stderr
    assert processes.run([venv / "bin/tiny"]).stdout == "here\n"


@pytest.mark.long
def test_a_bundle_that_is_too_large_names_its_largest_wheels(project: Path) -> None:
    with pytest.raises(SystemExit, match=r"more than --max-mb 0.001; largest, in MB: tiny 0"):
        build(project, "--max-mb", "0.001")


@pytest.mark.slow
def test_a_damaged_part_is_refused(project: Path) -> None:
    folder = build(project)
    part = folder / "bundle.000"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(SystemExit, match=r"bundle.000 is missing or not what was built"):
        bundle.main(["install", str(folder), str(project.parent / "venv")])


def test_another_python_is_refused(project: Path) -> None:
    with pytest.raises(SystemExit, match=r"--python 2.1: start this with python2.1"):
        build(project, "--python", "2.1")


def test_platforms_take_older_wheels_too() -> None:
    tags = bundle.platforms("manylinux_2_28_x86_64")
    assert tags[0] == "manylinux_2_28_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"} <= set(tags)
    assert "manylinux_2_34_x86_64" not in tags
    assert "manylinux2014_aarch64" not in bundle.platforms("manylinux_2_12_aarch64")


def test_what_has_no_wheel_is_known_from_what_pip_says() -> None:
    conflict = (
        "The conflict is caused by:\n    omegaconf 2.3.1 depends on antlr4-python3-runtime==4.9.*\n"
        "    omegaconf 2.3.0 depends on antlr4-python3-runtime==4.9.*\n"
    )
    assert bundle.without_wheel(conflict) == "antlr4-python3-runtime==4.9.*"
    assert bundle.without_wheel("ERROR: No matching distribution found for docopt>=0.6; extra") == "docopt>=0.6"
    assert bundle.without_wheel(conflict + "    torch 2 depends on numpy>=2\n") is None
    assert bundle.without_wheel("ERROR: no route to host") is None
