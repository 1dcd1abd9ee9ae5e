"""Every file in conf/ composes, resolves, and fits the code it names."""

from pathlib import Path

import pytest

from robolearn.cli.compose import compose, parse
from robolearn.config import GROUPS, check_targets, conf_dir

FILES = sorted(file.relative_to(conf_dir()).with_suffix("") for file in conf_dir().rglob("*.yaml"))


def argv_of(file: Path) -> list[str]:
    """A command line that takes the file in."""
    group, name = file.parent.as_posix(), file.name
    if group == "experiment":
        return [f"+experiment={name}"]
    if group.startswith("hydra/"):
        return ["-m", f"{group}={name}", "seed=1,2"]
    return [f"{group}={name}"] if group != "." else []


@pytest.mark.parametrize("file", [f for f in FILES if f.name not in ("evaluate", "collect")], ids=str)
def test_composes_and_fits_its_targets(file: Path) -> None:
    argv = argv_of(file)
    jobs = compose(parse(argv, "train"), "train")
    for job in jobs:
        assert check_targets(job.cfg) == []
        assert job.cfg.job_name
        assert job.folder.parts[0] == ("multirun" if "-m" in argv else "outputs")
        # What a typo would leave behind: an interpolation that names nothing.
        assert "${" not in str(job.cfg)


def test_groups_of_the_help_are_those_that_are_there() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()} - {"experiment", "hydra"}
    assert folders == set(GROUPS)


def test_every_key_is_commented() -> None:
    text = (conf_dir() / "train.yaml").read_text().split("\nhydra:")[0].split("# Run\n")[1]
    keys = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith(("#", "_"))]
    bare = [line for line in keys if "#" not in line and not line.startswith("job_name")]
    assert bare == []


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_files_begin_with_what_they_are(group: str) -> None:
    for file in (conf_dir() / group).glob("*.yaml"):
        lines = [line for line in file.read_text().splitlines() if "@package" not in line]
        assert lines[0].startswith("# "), file
