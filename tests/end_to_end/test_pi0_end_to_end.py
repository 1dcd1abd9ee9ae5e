"""pi0 from the command line: train, go on, evaluate, in the words of the dataset and in others."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from fakes.cli import ROOT, metrics, run
from fakes.datasets import write_dataset
from fakes.pi0 import LANGUAGE, VISION, write_tokenizer

from robolearn.config.compose import compose, parse
from robolearn.config.preflight import check
from robolearn.errors import UserError


def _mapping(sizes: dict[str, int]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in sizes.items()) + "}"


_COMMON = "device=cpu batch_size=2 num_workers=0 seed=3 log_freq=1 save_freq=100"
_PUSHT = "env=pusht env.episode_length=6 eval.n_episodes=2 eval.batch_size=2 eval.n_videos=0 eval_freq=2"
PUSHT = _PUSHT.split()
TINY = [
    *_COMMON.split(),
    "policy=pi0",
    "policy.chunk_size=4",
    "policy.n_action_steps=4",
    "policy.num_steps=2",
    "policy.proj_width=16",
    "policy.max_state_dim=4",
    "policy.max_action_dim=4",
    "policy.tokenizer_max_length=80",
    "policy.resize_imgs_with_padding=[28,28]",
    f"policy.vision={_mapping(VISION)}",
    f"policy.language={_mapping(LANGUAGE)}",
    "policy.expert={intermediate_size:32}",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys that choose a dataset of two short episodes and a tokenizer, in folders."""
    folder = tmp_path_factory.mktemp("dataset")
    root = write_dataset(folder / "pusht", episodes=2, length=12)
    tokenizer = write_tokenizer(folder / "tokenizer")
    return [f"dataset.root={root}", f"dataset.cache_dir={folder / 'cache'}", f"policy.tokenizer={tokenizer}"]


@pytest.mark.pusht
def test_trains_goes_on_and_evaluates(dataset: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [*TINY, *PUSHT, *dataset, f"output_dir={folder}"]
    run("train", *command, "offline.steps=2")
    assert "at step 2" in run("train", *command, "offline.steps=4")
    lines = metrics(folder)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"train/loss", "train/lr/policy"} <= lines[0].keys()
    assert lines[0]["train/lr/policy"] < lines[-1]["train/lr/policy"] < 2.5e-5  # warms up

    def evaluate(name: str, *words: str) -> dict:
        run("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path / name}", "device=cpu", *words)
        figures = json.loads((tmp_path / name / "eval.json").read_text())
        del figures["seconds_per_episode"]
        return figures

    own = json.loads((folder / "eval/00000004/eval.json").read_text())
    del own["seconds_per_episode"]
    assert evaluate("same") == own
    assert own["task"] == "Push the T-shaped block onto the T-shaped target."
    other = evaluate("other", "eval.task=rest")
    assert other["task"] == "rest"
    assert other["avg_sum_reward"] != own["avg_sum_reward"]
    missing = ["device=cpu", "tokenizer=nobody/nothing", f"output_dir={tmp_path / 'missing'}"]
    told = run("evaluate", f"checkpoint={folder}", *missing, status=2)
    assert "policy.tokenizer=nobody/nothing: there is no such folder" in told


def test_the_benchmark_measures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    keys = [
        "size=tiny",
        "device=cpu",
        "batch_size=1",
        "compile=false",
        "repeats=1",
        "variants=all+checkpointing,expert",
    ]
    monkeypatch.setattr(sys, "argv", ["pi0.py", *keys])
    runpy.run_path(str(ROOT / "benchmarks/pi0.py"), run_name="__main__")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for part in ("train all+checkpointing", "train expert", "act"):
        assert figures[part]["ms"] > figures[part]["floor_ms"] > 0


def refusal(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        check(compose(parse(argv, "train"), "train"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_to_be_had_is_told_before_anything_is_written(
    dataset: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "run"
    argv = [*TINY, *dataset, "env=none", f"output_dir={folder}"]
    assert "add policy.download=true" in refusal([*argv, "policy.tokenizer=nobody/nothing"])
    assert "holds no tokenizer" in refusal([*argv, f"policy.tokenizer={tmp_path}"])
    assert "has 51 tokens" in refusal([*argv, "policy.tokenizer_max_length=48"])
    assert "holds no *.safetensors" in refusal([*argv, f"policy.pretrained_paligemma={tmp_path}"])
    assert "PaliGemma's *.safetensors, or add" in refusal([*argv, "policy.pretrained_paligemma=nobody/nothing"])
    assert "dim=1 is less than the 2 numbers of the dataset's state" in refusal([*argv, "policy.max_state_dim=1"])
    assert "takes 'eager' or 'sdpa' or 'flex'" in refusal([*argv, "policy.attention_implementation=fa2"])
    assert not folder.exists()
