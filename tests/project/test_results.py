"""The figures of the pages are those of the recorded runs."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import record_result  # noqa: E402
import results  # noqa: E402


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The pages and records, to be changed."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("assets"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def status(root: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["results.py", "--root", str(root), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/results.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_the_pages_say_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(ROOT, monkeypatch, "--check") == 0


@pytest.mark.parametrize("page", ["README.md", "docs/speed.md", "docs/results.md"])
def test_a_figure_typed_by_hand_is_found_and_put_right(
    copied: Path, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copied / page
    before = file.read_text()
    region = before.partition("<!-- results: ")[2] or before
    file.write_text(before.replace(region, region.replace(" %", "9 %", 1)))
    assert file.read_text() != before
    assert status(copied, monkeypatch, "--check") == 1
    assert file.read_text() != before
    assert status(copied, monkeypatch) == 0
    assert file.read_text() == before


def some_record() -> tuple[Path, dict[str, Any]]:
    file = min((ROOT / results.FOLDER).glob("*.json"))
    return file, json.loads(file.read_text())


def with_one_success_more(record: dict[str, Any]) -> None:
    record["episodes"]["successes"] = record["episodes"]["successes"].replace("0", "1", 1)


@pytest.mark.parametrize(
    "change",
    [
        with_one_success_more,
        lambda record: record.update(success_rate=0.99),
        lambda record: record.update(success_low=record["success_low"] + 0.01),
        lambda record: record.update(avg_max_reward=1.0),
        lambda record: record["episodes"]["max_rewards"].pop(),
        lambda record: record.update(commit="main"),
        lambda record: record.update(minutes="7"),
        lambda record: record.update(comment="the best one"),
    ],
)
def test_a_record_whose_figures_are_not_its_episodes_is_refused(change: Any) -> None:
    _, record = some_record()
    change(record)
    with pytest.raises(ValidationError):
        results.Result.model_validate_json(json.dumps(record))


@pytest.mark.parametrize(("key", "value"), [("row", "diffusion_pusher"), ("seed", None)])
def test_a_record_belongs_to_a_row_and_is_there_once(copied: Path, key: str, value: Any) -> None:
    _, record = some_record()
    record |= {key: value} if value else {}
    (copied / results.FOLDER / "another.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"another\.json|the same seed"):
        results.load(copied / results.FOLDER)


def test_seeds_are_pooled() -> None:
    _, record = some_record()
    first = results.Result.model_validate_json(json.dumps(record))
    pool = results.Pool([first, first.model_copy(update={"seed": first.seed + 1})])
    assert pool.success == pytest.approx(first.success_rate)
    assert pool.count == 2 * len(first.episodes.successes)
    assert first.success_low < pool.low < pool.success < pool.high < first.success_high


def test_a_run_is_recorded_with_what_makes_it_another_than_its_recipe(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "eval/00000300").mkdir(parents=True)
    overrides = [
        "+experiment=diffusion_pusht_cpu",
        "seed=3",
        f"output_dir={run}",
        f"dataset.root={tmp_path}/my_pusht",
        "offline.steps=300",  # as the recipe says
        "optimizer.lr=0.01",
    ]
    about = {
        "overrides": overrides,
        "git_sha": "0" * 40,
        "python": "3.11.7",
        "packages": {"torch": "2.11.0"},
        "device": {"name": "cpu", "cuda": None},
        "time": 1.8e9,
    }
    config = {"seed": 3, "batch_size": 16, "offline": {"steps": 300}, "online": {"steps": 0}}
    rewards = [1.0, 0.5, 0.25]
    low, high = results.wilson_interval(1, 3)
    evaluated = {"success_rate": 1 / 3, "success_low": low, "success_high": high, "avg_max_reward": sum(rewards) / 3}
    evaluated["episodes"] = [
        {"seed": 100 + number, "success": reward == 1, "max_reward": reward} for number, reward in enumerate(rewards)
    ]
    (run / "run.json").write_text(json.dumps(about))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "eval/00000300/eval.json").write_text(json.dumps(evaluated))
    rates = [{"step": 10 * step, "train/samples_per_s": rate} for step, rate in enumerate([1.0, 90.0, 100.0])]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rates)))
    (tmp_path / "run.json").write_text(json.dumps({"seconds": 90.0}))

    file = record_result.write(record_result.record(run, row="diffusion_pusht"), tmp_path)
    result = results.Result.model_validate_json(file.read_text())
    assert (result.recipe, result.overrides) == ("diffusion_pusht_cpu", ["optimizer.lr=0.01"])
    assert (result.minutes, result.samples_per_s) == (1.5, 90.0)
    assert result.episodes == results.Episodes(first_seed=100, successes="100", max_rewards=rewards)
    assert str(tmp_path) not in file.read_text()
    assert "dataset.root=my_pusht" in result.command
