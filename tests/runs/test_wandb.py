"""Weights & Biases in its offline mode, as its own files tell."""

import builtins
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.training import Counting, Line, metrics, trainer
from fakes.wandb_file import history, runs, started

from robolearn.errors import UserError
from robolearn.runs.logger import Logger
from robolearn.runs.wandb_logger import WandbLogger

pytest.importorskip("wandb", reason="needs the package wandb: pip install wandb")


def run(folder: Path, policy: Line | None = None, **options: Any) -> None:
    """A small run that logs there, from its start or its last checkpoint to its end."""
    made = trainer(folder, log=3, save=4, evaluate=6, evaluator=Counting(), policy=policy)
    made.logger = Logger(folder, tensorboard=False, wandb=partial(WandbLogger, **options))
    made.train()


def test_scalars_configuration_and_notes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("policy: {horizon: 16}\n")
    run(tmp_path, project="mine", entity="us", notes="first try", name="pusht_diffusion")
    (records,) = runs(tmp_path)
    told = started(records)
    assert (told.project, told.entity, told.notes, told.display_name) == ("mine", "us", "first try", "pusht_diffusion")
    config = {item.key: json.loads(item.value_json) for item in told.config.update}
    assert config["policy"] == {"horizon": 16}
    assert [line["step"] for line in history(records)] == [line["step"] for line in metrics(tmp_path)] == [3, 6, 9, 12]
    for line, other in zip(history(records), metrics(tmp_path), strict=True):
        assert {key: line[key] for key in other} == pytest.approx(other)


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    def cut() -> None:
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError):
        run(tmp_path, Line(at={8: cut}))
    run(tmp_path)
    first, second = runs(tmp_path)
    assert started(first).run_id == started(second).run_id == (tmp_path / "wandb" / "run_id").read_text()
    assert [line["step"] for line in history(first)] == [3, 6]
    assert [line["step"] for line in history(second)][-2:] == [9, 12]
    codes = [r.exit.exit_code for records in (first, second) for r in records if r.WhichOneof("record_type") == "exit"]
    assert codes == [1, 0]


def test_an_id_may_be_given(tmp_path: Path) -> None:
    run(tmp_path, run_id="abc123")
    assert started(runs(tmp_path)[0]).run_id == "abc123"


@pytest.mark.parametrize("disable_artifact", [False, True])
def test_the_model_is_kept_unless_that_is_disabled(tmp_path: Path, disable_artifact: bool) -> None:
    run(tmp_path, disable_artifact=disable_artifact)
    found = [r for r in runs(tmp_path)[0] if r.WhichOneof("record_type") == "artifact" or "artifact" in str(r.request)]
    assert bool(found) != disable_artifact


def test_a_video_is_kept(tmp_path: Path) -> None:
    logger = Logger(tmp_path, tensorboard=False, wandb=WandbLogger)
    logger.video(4, "eval/video", np.zeros((2, 8, 8, 3), np.uint8), fps=10.0)
    logger.close()
    (line,) = history(runs(tmp_path)[0])
    assert line["eval/video._type"] == "video-file" if "eval/video._type" in line else line["eval/video"]
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/videos/**/*.gif"))


def test_disabled_writes_nothing_but_the_lines(tmp_path: Path) -> None:
    run(tmp_path, mode="disabled")
    assert runs(tmp_path) == []
    assert len(metrics(tmp_path)) == 4


def test_a_missing_package_is_told_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    with pytest.raises(UserError, match="pip install 'wandb>=0.19'"):
        WandbLogger(tmp_path)


def test_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger.wandb.project is empty"):
        WandbLogger(tmp_path, project="")


def test_online_without_a_login_ends_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def refuse(**options: Any) -> None:
        assert options["mode"] == "online"
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"mode=online: .* \(No API key configured\); .*mode=offline\.$"):
        WandbLogger(tmp_path, mode="online").scalars(1, {"a": 1.0})


def test_other_loggers_do_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    real = builtins.__import__

    def watched(name: str, *rest: Any, **options: Any) -> Any:
        assert name.split(".")[0] != "wandb"
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", watched)
    logger = Logger(tmp_path, tensorboard=False)
    logger.scalars(1, {"a": 1.0})
    logger.close()
