"""Runs whose small files are damaged: each is named, what can be rebuilt is, and the run goes on."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.damage import DAMAGE
from fakes.training import CONFIG, Counting, metrics, saved, status, trained

from robolearn.runs.run import Run
from robolearn.system.json_files import read_json


def run(folder: Path, steps: int = 8) -> Any:
    """A run with checkpoints of the steps 4 and 8, each evaluated."""
    Run(folder, CONFIG, ["seed=0"]).record() if not folder.exists() else None
    return trained(folder, steps=steps, evaluate=4, evaluator=Counting())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to step 8."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run", symlinks=True)


FILES = ["status.json", "metrics.jsonl", "checkpoints/00000004/score.json", "checkpoints/00000008/state.pt"]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_run_goes_on_past_a_damaged_file(
    folder: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[damage](folder / file)
    with caplog.at_level(logging.WARNING):
        run(folder, steps=12)
    assert (status(folder)["state"], status(folder)["step"]) == ("finished", 12)
    assert metrics(folder)[-1]["step"] == 12
    assert saved(folder)[-1] == 12
    # A damaged status is replaced before anybody reads it, and an end cut short is what any kill leaves.
    if file != "status.json" and (file, damage) not in [("metrics.jsonl", "cut short"), ("metrics.jsonl", "empty")]:
        assert Path(file).name in caplog.text


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_score_is_written_again_from_its_evaluation(folder: Path, damage: str) -> None:
    score = folder / "checkpoints/00000004/score.json"
    before = read_json(score)
    (folder / "eval/00000004").mkdir(parents=True)
    (folder / "eval/00000004/eval.json").write_text(score.read_text())
    DAMAGE[damage](score)
    run(folder, steps=12)
    assert not score.exists() or read_json(score) == before


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["config.yaml", "run.json"])
def test_a_damaged_record_is_written_again(
    folder: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGE[damage](folder / file)
    made = Run(folder, CONFIG, ["seed=0"])
    assert made.exists
    # What the checkpoints say decides where the run's own file can't be compared.
    (folder / "checkpoints/00000008/config.yaml").write_text(yaml.safe_dump(CONFIG))
    made.check_same()
    made.repair()
    if (file, damage) != ("run.json", "of other keys"):
        assert str(folder / file) in caplog.text
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    assert read_json(folder / "run.json")


@pytest.mark.parametrize("name", ["00000004 copy", "5_old", "notes.txt", ".00000009.123", "99", "²"])
def test_a_stray_name_among_checkpoints_is_no_checkpoint(folder: Path, name: str) -> None:
    (folder / "checkpoints" / name).mkdir()
    run(folder, steps=12)
    assert (folder / "checkpoints/last").resolve().name == "00000012"


@pytest.mark.parametrize("link", ["last", "best"])
def test_a_copy_with_folders_in_place_of_links_is_resumed(folder: Path, link: str) -> None:
    target = (folder / "checkpoints" / link).resolve()
    (folder / "checkpoints" / link).unlink()
    shutil.copytree(target, folder / "checkpoints" / link)
    run(folder, steps=12)
    assert (folder / "checkpoints" / link).is_symlink()
    assert (folder / "checkpoints" / f"{link}.1/model.safetensors").is_file()
