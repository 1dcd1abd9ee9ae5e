"""TD-MPC from the command line: train, go on, evaluate."""

import json
from pathlib import Path

import pytest
from fakes.cli import metrics, run
from fakes.datasets import write_dataset

from robolearn.config.compose import compose, parse
from robolearn.config.preflight import check
from robolearn.errors import UserError

pytestmark = pytest.mark.pusht

_TINY = """
policy=tdmpc policy.horizon=3 policy.image_encoder_hidden_dim=4 policy.state_encoder_hidden_dim=8 policy.latent_dim=6
policy.mlp_dim=8 policy.q_ensemble_size=3 policy.cem_iterations=2 policy.n_gaussian_samples=6 policy.n_pi_samples=2
policy.n_elites=3 device=cpu batch_size=2 num_workers=0 seed=3 log_freq=1 save_freq=100
"""
_PUSHT = "env=pusht env.episode_length=6 eval.n_episodes=2 eval.batch_size=2 eval.n_videos=0 eval_freq=2"
TINY, PUSHT = _TINY.split(), _PUSHT.split()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys that choose a dataset of two short episodes, with a cache of its own."""
    folder = tmp_path_factory.mktemp("dataset")
    root = write_dataset(folder / "pusht", episodes=2, length=12)
    return [f"dataset.root={root}", f"dataset.cache_dir={folder / 'cache'}"]


def test_trains_goes_on_and_evaluates(dataset: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [*TINY, *PUSHT, *dataset, f"output_dir={folder}"]
    run("train", *command, "offline.steps=2")
    assert "at step 2" in run("train", *command, "offline.steps=4")
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"train/loss", "train/consistency_loss", "train/pi_loss", "train/lr/policy"} <= lines[0].keys()

    run("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path / 'eval'}", "device=cpu")
    own, again = (
        json.loads((path / "eval.json").read_text()) for path in (folder / "eval/00000004", tmp_path / "eval")
    )
    for figures in (own, again):
        del figures["seconds_per_episode"]
    assert again == own


def test_goes_on_as_if_never_stopped(dataset: list[str], tmp_path: Path) -> None:
    command = [*TINY, *dataset, "env=none"]
    run("train", *command, "offline.steps=3", f"output_dir={tmp_path / 'once'}")
    for steps in (1, 3):
        run("train", *command, f"offline.steps={steps}", f"output_dir={tmp_path / 'twice'}")
    once, twice = (metrics(tmp_path / name) for name in ("once", "twice"))
    assert [line["train/loss"] for line in twice] == [line["train/loss"] for line in once]


REFUSED = {
    "policy.n_action_steps=2": r"set policy.n_action_repeats=1 \(now 2\)",
    "policy.normalization_mapping.ACTION=MEAN_STD": r"policy.normalization_mapping.ACTION=MEAN_STD must be MIN_MAX",
    "policy.use_mpc=maybe": r"policy.use_mpc",
}


@pytest.mark.parametrize("option", REFUSED)
def test_rules_are_told_before_anything_is_written(dataset: list[str], tmp_path: Path, option: str) -> None:
    folder = tmp_path / "run"
    argv = [*TINY, *dataset, "env=none", f"output_dir={folder}", option]
    with pytest.raises(UserError, match=REFUSED[option]):
        check(compose(parse(argv, "train"), "train"))
    assert not folder.exists()
