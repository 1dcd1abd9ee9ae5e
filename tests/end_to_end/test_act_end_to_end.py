"""ACT from the command line: train, go on, evaluate, with its preset and without."""

import json
from pathlib import Path

import pytest
import yaml
from fakes.cli import metrics, run
from fakes.datasets import write_dataset

from robolearn.config.compose import compose, parse
from robolearn.config.preflight import check
from robolearn.errors import UserError

pytestmark = pytest.mark.pusht

_TINY = """
policy=act policy.chunk_size=4 policy.n_action_steps=4 policy.dim_model=16 policy.n_heads=2 policy.dim_feedforward=16
policy.n_encoder_layers=1 policy.n_vae_encoder_layers=1 policy.latent_dim=4 device=cpu batch_size=2 num_workers=0 seed=3
log_freq=1 save_freq=100
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
    ensembling = ["policy.n_action_steps=1", "policy.temporal_ensemble_coeff=0.01"]
    command = [*TINY, *PUSHT, *ensembling, *dataset, f"output_dir={folder}"]
    run("train", *command, "offline.steps=2")
    assert "at step 2" in run("train", *command, "offline.steps=4")
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"train/loss", "train/l1_loss", "train/kld_loss", "train/lr/policy", "train/lr/backbone"} <= lines[0].keys()

    run("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path / 'eval'}", "device=cpu")
    own, again = (
        json.loads((path / "eval.json").read_text()) for path in (folder / "eval/00000004", tmp_path / "eval")
    )
    for figures in (own, again):
        del figures["seconds_per_episode"]
    assert again == own


def test_another_optimizer_drops_the_preset_and_its_groups(dataset: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", *TINY, "optimizer=sgd", "env=none", *dataset, f"output_dir={folder}", "offline.steps=1")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["optimizer"]["_target_"] == "torch.optim.SGD"
    assert "betas" not in config["optimizer"]
    assert config["param_groups"] == {}


REFUSED = {
    "policy.temporal_ensemble_coeff=0.01": r"set policy.n_action_steps=1 \(now 4\)",
    "policy.pretrained_backbone_weights=ResNet18_Weights.IMAGENET1K_V1": r"nothing is downloaded unasked",
    "policy.feedforward_activation=tanh": r"takes 'relu' or 'gelu' or 'glu'",
    "+param_groups.bakbone.lr=1": r"no parameter group 'bakbone' \(did you mean 'backbone'\?\)",
}


@pytest.mark.parametrize("option", REFUSED)
def test_rules_are_told_before_anything_is_written(
    dataset: list[str], tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "run"
    argv = [*TINY, *dataset, "env=none", f"output_dir={folder}", option]
    with pytest.raises(UserError, match=REFUSED[option]):
        check(compose(parse(argv, "train"), "train"))
    assert not folder.exists()
