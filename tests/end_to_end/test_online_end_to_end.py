"""The online phase from the command line: collect, resume exactly, and say what is wrong before step 0."""

from pathlib import Path

import pytest
from fakes.cli import POLICIES, PUSHT, metrics, run
from fakes.datasets import write_dataset

from robolearn.config.compose import compose, parse
from robolearn.config.preflight import check
from robolearn.errors import UserError

pytestmark = pytest.mark.pusht

_ONLINE = """
batch_size=4 num_workers=2 log_freq=2 eval_freq=0 offline.steps=2 online=default online.steps_between_rollouts=2
online.env_seed=5 online.buffer_capacity=30 online.buffer_seed_size=10 online.rollout_n_episodes=2
online.rollout_batch_size=2
"""
TINY = [*POLICIES["tdmpc"], *PUSHT, *_ONLINE.split()]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys that choose a dataset of two short episodes, with a cache of its own."""
    folder = tmp_path_factory.mktemp("dataset")
    root = write_dataset(folder / "pusht", episodes=2, length=12)
    return [f"dataset.root={root}", f"dataset.cache_dir={folder / 'cache'}"]


def test_resumes_exactly(dataset: list[str], tmp_path: Path) -> None:
    run("train", *TINY, *dataset, "online.steps=6", f"output_dir={tmp_path / 'once'}")
    for steps in (3, 6):
        run("train", *TINY, *dataset, f"online.steps={steps}", f"output_dir={tmp_path / 'twice'}")
    once, twice = (metrics(tmp_path / name) for name in ("once", "twice"))
    for key in ("train/loss", "online/env_steps", "online/avg_sum_reward"):
        assert {line["step"]: line[key] for line in twice if key in line} == {
            line["step"]: line[key] for line in once if key in line
        }
    assert [line["online/env_steps"] for line in once if "online/env_steps" in line] == [12, 24, 36]


def test_collects_beside_training(dataset: list[str], tmp_path: Path) -> None:
    argv = ["online.steps=6", "online.do_rollout_async=true", f"output_dir={tmp_path / 'run'}"]
    run("train", *TINY, *dataset, *argv)
    assert any("online/weights_age" in line for line in metrics(tmp_path / "run"))


REFUSED = {
    "env=none": r"online.steps=100000 needs a simulator to collect in",
    "online.env_seed=null": r"online.env_seed is missing",
    "online.buffer_capacity=6 online.buffer_seed_size=0": r"online.buffer_capacity=6 is less than one episode",
    "online.sampling_ratio=1.1": r"online.sampling_ratio=1.1 \(the command line\) must be at most 1",
    "online.steps_between_rollout=3": r"did you mean 'online.steps_between_rollouts'",
}


@pytest.mark.parametrize("option", REFUSED)
def test_what_is_wrong_is_told_before_anything_is_written(dataset: list[str], tmp_path: Path, option: str) -> None:
    folder = tmp_path / "run"
    given = [text for text in TINY if option != "env=none" or not text.startswith("env")]
    argv = [*given, *dataset, f"output_dir={folder}", *option.split()]
    with pytest.raises(UserError, match=REFUSED[option]):
        check(compose(parse(argv, "train"), "train"))
    assert not folder.exists()
