"""From the command line to a checkpoint and back: every policy trains, saves, resumes and evaluates."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fakes.cli import POLICIES, PUSHT, TINY, evaluation, metrics, run
from fakes.datasets import write_dataset
from fakes.pi0 import write_tokenizer
from safetensors.torch import load_file

from robolearn.config.compose import compose, parse
from robolearn.config.preflight import check
from robolearn.errors import UserError

pytestmark = pytest.mark.pusht

# What each policy logs in the first and in the second update.
LOGGED = {
    "act": ({"train/l1_loss", "train/kld_loss", "train/lr/backbone"}, set()),
    "diffusion": ({"train/lr/policy"}, set()),
    "pi0": ({"train/lr/policy"}, set()),
    "tdmpc": ({"train/consistency_loss", "train/pi_loss"}, set()),
    "vqbet": ({"train/recon_l1_error", "train/lr/tokenizer"}, {"train/classification_loss", "train/offset_loss"}),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys that choose a dataset of two short episodes, with a cache of its own."""
    folder = tmp_path_factory.mktemp("dataset")
    root = write_dataset(folder / "pusht", episodes=2, length=20)
    return [f"dataset.root={root}", f"dataset.cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def keys(dataset: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """The keys of a tiny run of a policy."""
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    own = {"pi0": [f"policy.tokenizer={tokenizer}"]}
    return lambda policy: [*POLICIES[policy], *own.get(policy, []), *dataset]


@pytest.fixture(scope="module")
def trained(keys: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a policy that was stopped after one update and resumed for a second; trained once."""

    @functools.cache
    def train(policy: str) -> Path:
        folder = tmp_path_factory.mktemp("runs") / policy
        command = [*keys(policy), *PUSHT, f"output_dir={folder}"]
        run("train", *command, "offline.steps=1")
        assert "at step 1" in run("train", *command, "offline.steps=2")
        return folder

    return train


@pytest.mark.parametrize("policy", POLICIES)
def test_trains_resumes_and_evaluates(trained: Callable[[str], Path], tmp_path: Path, policy: str) -> None:
    folder = trained(policy)
    first, second = metrics(folder)
    assert (first["step"], second["step"]) == (1, 2)
    for line, logged in zip((first, second), LOGGED[policy], strict=True):
        assert {"train/loss", *logged} <= line.keys()
    run("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path / 'eval'}", "device=cpu")
    again = evaluation(tmp_path / "eval")
    assert again == evaluation(folder / "eval/00000002")
    assert second["eval/avg_sum_reward"] == again["avg_sum_reward"]


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_resumes_exactly(keys: Callable[[str], list[str]], tmp_path: Path, policy: str) -> None:
    command = [*keys(policy), "env=none", "scheduler=constant", "offline.steps=3"]
    command = [key for key in command if not key.startswith("scheduler.")]
    run("train", *command, f"output_dir={tmp_path / 'whole'}")
    for steps in (1, 2, 3):
        run("train", *command, f"offline.steps={steps}", f"output_dir={tmp_path / 'resumed'}")
    whole, resumed = (metrics(tmp_path / name) for name in ("whole", "resumed"))
    assert [line["train/loss"] for line in resumed] == [line["train/loss"] for line in whole]


REFUSED = {
    "act": {
        "policy.n_action_steps=2": "policy.temporal_ensemble_coeff",
        "policy.pretrained_backbone_weights=ResNet18_Weights.IMAGENET1K_V1": "nothing is downloaded",
        "policy.feedforward_activation=tanh": "'relu'",
        "+param_groups.bakbone.lr=1": "did you mean 'backbone'?",
    },
    "pi0": {
        "policy.tokenizer=nobody/nothing": "policy.download=true",
        "policy.tokenizer_max_length=48": "51 tokens",
        "policy.pretrained_paligemma=nobody/nothing": "*.safetensors",
        "policy.max_state_dim=1": "dataset",
        "policy.attention_implementation=fa2": "'eager'",
    },
    "tdmpc": {
        "policy.n_action_steps=2": "policy.n_action_repeats=1",
        "policy.normalization_mapping.ACTION=MEAN_STD": "MIN_MAX",
        "policy.use_mpc=maybe": "maybe",
    },
    "vqbet": {
        "policy.n_action_steps=4": "policy.action_chunk_size=3",
        "policy.gpt_n_head=3": "policy.gpt_hidden_dim=8",
        "policy.sequentially_select=maybe": "maybe",
    },
}


@pytest.mark.parametrize(("policy", "option"), [(policy, option) for policy in REFUSED for option in REFUSED[policy]])
def test_rules_are_checked_before_anything_is_written(
    keys: Callable[[str], list[str]], tmp_path: Path, policy: str, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    folder = tmp_path / "run"
    with pytest.raises(UserError) as refused:
        check(compose(parse([*keys(policy), "env=none", f"output_dir={folder}", option], "train"), "train"))
    message = str(refused.value)
    assert option.split("=")[0].lstrip("+").removesuffix(".lr") in message
    assert REFUSED[policy][option] in message
    assert "\n" not in message
    assert not folder.exists()


def test_a_run_leaves_what_it_promises(trained: Callable[[str], Path]) -> None:
    folder = trained("diffusion")
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "run.json", "status.json", "train.log", "metrics.jsonl", "tensorboard"} <= names
    assert not {".hydra", "multirun"} & names
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 2)
    assert (folder / "checkpoints/last").readlink() == Path("00000002")


def test_another_configuration_is_refused_in_its_folder(trained: Callable[[str], Path], dataset: list[str]) -> None:
    folder = trained("diffusion")
    before = sorted(path.name for path in folder.rglob("*"))
    printed = run("train", *TINY, *dataset, f"output_dir={folder}", "offline.steps=2", "seed=4", status=2)
    assert "seed was 3, now 4" in printed.strip().splitlines()[-1]
    assert "Traceback" not in printed
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_another_optimizer_replaces_the_preset_and_its_groups(dataset: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run("train", "optimizer=sgd", *POLICIES["act"], *dataset, "env=none", f"output_dir={folder}", "offline.steps=1")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["env"] is None
    assert (config["optimizer"]["_target_"], config["optimizer"]["lr"]) == ("torch.optim.SGD", 0.001)
    assert "betas" not in config["optimizer"]
    assert config["param_groups"] == {}
    assert not (folder / "eval").exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert load_file(folder / "checkpoints/last/model.safetensors")


def test_pi0_follows_another_instruction(trained: Callable[[str], Path], tmp_path: Path) -> None:
    folder = trained("pi0")
    # Long enough for the block to be touched: until then every policy has the same rewards.
    options = [f"checkpoint={folder}", "device=cpu", "env.episode_length=40", "eval.n_episodes=4"]
    run("evaluate", *options, f"output_dir={tmp_path / 'own'}")
    run("evaluate", *options, f"output_dir={tmp_path / 'other'}", "eval.task=rest")
    own, other = evaluation(tmp_path / "own"), evaluation(tmp_path / "other")
    assert own["task"] == "Push the T-shaped block onto the T-shaped target."
    assert other["task"] == "rest"
    assert other["avg_sum_reward"] != own["avg_sum_reward"]
    missing = ["device=cpu", "tokenizer=nobody/nothing", f"output_dir={tmp_path / 'missing'}"]
    printed = run("evaluate", f"checkpoint={folder}", *missing, status=2)
    assert "policy.tokenizer=nobody/nothing" in printed


def test_the_schedule_of_vqbet_follows_its_tokenizers_steps() -> None:
    [job] = compose(parse(["policy=vqbet", "policy.n_vqvae_training_steps=7"], "train"), "train")
    assert job.cfg.scheduler.num_vqvae_training_steps == 7
    [job] = compose(parse(["policy=vqbet", "scheduler=constant"], "train"), "train")
    assert "num_vqvae_training_steps" not in job.cfg.scheduler
