"""Every file in conf/ composes, resolves, and fits the code it names."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from robolearn.config.compose import compose, parse
from robolearn.config.schema import CONFIG_GROUPS
from robolearn.config.validate import check_targets
from robolearn.system.paths import conf_dir

FILES = sorted(file.relative_to(conf_dir()).with_suffix("") for file in conf_dir().rglob("*.yaml"))


def argv_of(file: Path) -> list[str]:
    """A command line that takes the file in."""
    group, name = file.parent.as_posix(), file.name
    if group == "experiment":
        return [f"+experiment={name}"]
    if group == "hydra/sweeper/sampler":
        return ["-m", "hydra/sweeper=optuna", f"{group}={name}", "seed=1,2"]
    if group.startswith("hydra/"):
        return ["-m", f"{group}={name}", "seed=1,2"]
    return [f"{group}={name}"] if group != "." else []


TRAINING = [f for f in FILES if f.name not in ("evaluate", "collect", "pretrained") and f.parent.name != "demonstrator"]


@pytest.mark.parametrize("file", TRAINING, ids=str)
def test_composes_and_fits_its_targets(file: Path) -> None:
    argv = argv_of(file)
    jobs = compose(parse(argv, "train"), "train")
    for job in jobs:
        assert check_targets(job.cfg) == []
        assert job.cfg.job_name
        assert job.folder.parts[0] == ("multirun" if "-m" in argv else "outputs")
        # What a typo would leave behind: an interpolation that names nothing.
        assert "${" not in str(job.cfg)


def test_a_sampler_is_checked_with_the_first_of_all_values() -> None:
    ranges = ["seed=range(3,8)", "batch_size=choice(16,32)", "optimizer.lr=tag(log,interval(1e-5,1e-3))"]
    ranges.append("+policy.crop_shape=choice([84,84],[90,90])")
    (job,) = compose(parse(["-m", "hydra/sweeper=optuna", *ranges], "train"), "train")
    assert (job.cfg.seed, job.cfg.batch_size, job.cfg.optimizer.lr) == (3, 16, 1e-5)
    assert job.cfg.policy.crop_shape == [84, 84]


def test_groups_of_the_help_are_those_that_are_there() -> None:
    folders = {path.name for path in conf_dir().iterdir() if path.is_dir()} - {"demonstrator", "experiment", "hydra"}
    assert folders == set(CONFIG_GROUPS)


def test_every_key_is_commented() -> None:
    text = (conf_dir() / "train.yaml").read_text().split("\nhydra:")[0].split("# Run\n")[1]
    keys = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith(("#", "_"))]
    bare = [line for line in keys if "#" not in line and not line.startswith("job_name")]
    assert bare == []


@pytest.mark.parametrize("file", sorted((conf_dir() / "demonstrator").glob("*.yaml")), ids=lambda file: file.stem)
def test_demonstrators_fit_their_targets(file: Path) -> None:
    node = OmegaConf.load(file)
    assert check_targets(OmegaConf.create({"demonstrator": node})) == []
    code = inspect.signature(get_class(node._target_)).parameters
    # Every option of the code is in the file, with the value that the code has.
    options = {key: value for key, value in OmegaConf.to_container(node).items() if not key.startswith("_")}
    assert options == {name: p.default for name, p in code.items() if name != "env"}


@pytest.mark.parametrize("group", [*sorted(CONFIG_GROUPS), "demonstrator"])
def test_files_begin_with_what_they_are(group: str) -> None:
    for file in (conf_dir() / group).glob("*.yaml"):
        lines = [line for line in file.read_text().splitlines() if "@package" not in line]
        assert lines[0].startswith("# "), file
