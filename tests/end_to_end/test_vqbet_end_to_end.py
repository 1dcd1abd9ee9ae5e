"""VQ-BeT from the command line: train, go on from one phase to the next, evaluate."""

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
policy=vqbet policy.n_obs_steps=2 policy.n_action_pred_token=2 policy.action_chunk_size=3 policy.crop_shape=[64,64]
policy.n_vqvae_training_steps=2 policy.vqvae_n_embed=4 policy.vqvae_embedding_dim=6 policy.vqvae_enc_hidden_dim=8
policy.gpt_input_dim=8 policy.gpt_output_dim=8 policy.gpt_hidden_dim=8 policy.gpt_n_layer=1 policy.gpt_n_head=2
policy.spatial_softmax_num_keypoints=4 scheduler.num_warmup_steps=1
device=cpu batch_size=2 num_workers=0 seed=3 log_freq=1 save_freq=100
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
    assert {"train/loss", "train/recon_l1_error", "train/lr/tokenizer"} <= lines[1].keys()
    assert {"train/loss", "train/classification_loss", "train/offset_loss"} <= lines[3].keys()
    assert lines[0]["train/lr/decay"] == 1e-4
    assert lines[0]["train/lr/tokenizer"] == 1e-3

    run("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path / 'eval'}", "device=cpu")
    own, again = (
        json.loads((path / "eval.json").read_text()) for path in (folder / "eval/00000004", tmp_path / "eval")
    )
    for figures in (own, again):
        del figures["seconds_per_episode"]
    assert again == own


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_goes_on_as_if_never_stopped(dataset: list[str], tmp_path: Path, stop: int) -> None:
    # With a constant rate, because a schedule's length is that of the run.
    command = [*TINY, *dataset, "env=none", "scheduler.num_cycles=0"]
    run("train", *command, "offline.steps=4", f"output_dir={tmp_path / 'once'}")
    for steps in (stop, 4):
        run("train", *command, f"offline.steps={steps}", f"output_dir={tmp_path / 'twice'}")
    once, twice = (metrics(tmp_path / name) for name in ("once", "twice"))
    assert [line["train/loss"] for line in twice] == [line["train/loss"] for line in once]


def test_the_schedule_follows_the_tokenizers_steps() -> None:
    [job] = compose(parse(["policy=vqbet", "policy.n_vqvae_training_steps=7"], "train"), "train")
    assert job.cfg.scheduler.num_vqvae_training_steps == 7


def test_another_schedule_may_be_chosen() -> None:
    [job] = compose(parse(["policy=vqbet", "scheduler=constant"], "train"), "train")
    assert "num_vqvae_training_steps" not in job.cfg.scheduler


REFUSED = {
    "policy.n_action_steps=4": r"policy.n_action_steps=4 must be between 1 and policy.action_chunk_size=3",
    "policy.gpt_n_head=3": r"policy.gpt_hidden_dim=8 must be a multiple of policy.gpt_n_head=3",
    "policy.sequentially_select=maybe": r"policy.sequentially_select",
}


@pytest.mark.parametrize("option", REFUSED)
def test_rules_are_told_before_anything_is_written(dataset: list[str], tmp_path: Path, option: str) -> None:
    folder = tmp_path / "run"
    argv = [*TINY, *dataset, "env=none", f"output_dir={folder}", option]
    with pytest.raises(UserError, match=REFUSED[option]):
        check(compose(parse(argv, "train"), "train"))
    assert not folder.exists()
