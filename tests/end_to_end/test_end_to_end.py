"""From the command line to a checkpoint and back: train, go on, evaluate."""

import json
from pathlib import Path

import pytest
import yaml
from fakes.cli import TINY, metrics, run
from fakes.datasets import write_dataset
from safetensors.torch import load_file

pytestmark = pytest.mark.pusht


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys that choose a dataset of three short episodes, with a cache of its own."""
    folder = tmp_path_factory.mktemp("dataset")
    root = write_dataset(folder / "pusht", episodes=3, length=20)
    return [f"dataset.root={root}", f"dataset.cache_dir={folder / 'cache'}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset: list[str]) -> tuple[Path, list[str]]:
    """A run of two steps that went on to four, and what both commands printed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [*TINY, *dataset, f"output_dir={folder}"]
    return folder, [run("train", *command, f"offline.steps={steps}") for steps in (2, 4)]


def test_a_run_leaves_what_it_promises(trained: tuple[Path, list[str]]) -> None:
    folder, _ = trained
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "run.json", "status.json", "train.log", "metrics.jsonl", "tensorboard"} <= names
    assert not {".hydra", "multirun"} & names
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("finished", 4)


def test_a_run_goes_on_with_more_steps(trained: tuple[Path, list[str]]) -> None:
    folder, (_, second) = trained
    assert "at step 2" in second
    assert [line["step"] for line in metrics(folder)] == [1, 2, 3, 4]
    assert (folder / "checkpoints/last").readlink() == Path("00000004")


def test_robolearn_eval_gives_the_runs_own_figures(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = trained
    run("evaluate", f"checkpoint={folder}", f"output_dir={tmp_path / 'eval'}", "device=cpu")
    own, again = (
        json.loads((path / "eval.json").read_text()) for path in (folder / "eval/00000004", tmp_path / "eval")
    )
    for figures in (own, again):
        del figures["seconds_per_episode"]
    assert again == own
    logged = {key.removeprefix("eval/"): value for key, value in metrics(folder)[-1].items() if key.startswith("eval/")}
    assert logged["avg_sum_reward"] == again["avg_sum_reward"]
    assert logged["success_rate"] == again["success_rate"]


def test_another_configuration_is_refused_in_its_folder(trained: tuple[Path, list[str]], dataset: list[str]) -> None:
    folder, _ = trained
    before = sorted(path.name for path in folder.rglob("*"))
    told = run("train", *TINY, *dataset, f"output_dir={folder}", "offline.steps=4", "seed=4", status=2)
    assert "seed was 3, now 4" in told.strip().splitlines()[-1]
    assert "Traceback" not in told
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_trains_without_a_simulator_and_with_the_optimizer_of_the_command_line(
    dataset: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    simulated = ("env", "eval.", "eval_freq=")
    command = [key for key in TINY if not key.startswith(simulated)]
    run("train", "optimizer=sgd", *command, *dataset, "env=none", f"output_dir={folder}", "offline.steps=1")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["env"] is None
    assert config["optimizer"]["_target_"] == "torch.optim.SGD"
    assert config["optimizer"]["lr"] == 0.001
    assert "betas" not in config["optimizer"]
    assert not (folder / "eval").exists()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert load_file(folder / "checkpoints/last/model.safetensors")
