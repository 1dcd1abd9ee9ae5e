"""A run's folder: its status while it lives and when it ends, its record, and which configurations are the same."""

import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import processes

from robolearn.errors import UserError
from robolearn.runs import run as module
from robolearn.runs.run import MUTABLE_KEYS, Run, differences, flatten, holds_run, newest_unfinished, status

CONFIG: dict[str, Any] = {
    "seed": 0,
    "batch_size": 8,
    "log_freq": 200,
    "eval_freq": 1000,
    "save_freq": 1000,
    "save_checkpoint": True,
    "resume": "auto",
    "job_name": "a",
    "output_dir": "outputs/a",
    "offline": {"_target_": "x", "steps": 100},
    "online": {"steps": 0},
    "eval": {"n_episodes": 50, "seed": 1},
    "logger": {"tensorboard": True},
    "policy": {"horizon": 16, "down_dims": [8, 16], "crop_shape": None},
    "param_groups": {},
}


def changed(key: str, value: Any) -> dict[str, Any]:
    """The configuration with another value of a dotted key."""
    config = json.loads(json.dumps(CONFIG))
    *path, last = key.split(".")
    node = config
    for name in path:
        node = node[name]
    node[last] = value
    return config


def run_in(folder: Path, config: dict[str, Any] = CONFIG) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, config, ["batch_size=8"])


# Which configurations are the same


def test_a_configuration_equals_itself_read_back() -> None:
    assert differences(yaml.safe_load(yaml.safe_dump(CONFIG)), CONFIG) == []


CHANGES = [
    ("seed", 1),
    ("policy.horizon", 8),
    ("policy.down_dims", [8]),
    ("policy.crop_shape", [4, 4]),
    ("param_groups", {"policy": {"lr": 1.0}}),
    ("batch_size", 4),
]


@pytest.mark.parametrize(("key", "value"), CHANGES, ids=[key for key, _ in CHANGES])
def test_a_difference_is_named_with_both_values(key: str, value: Any) -> None:
    found = differences(CONFIG, changed(key, value))
    assert found
    assert found[0][0].startswith(key)


def test_a_difference_holds_the_old_and_the_new_value() -> None:
    assert differences(CONFIG, changed("policy.horizon", 8)) == [("policy.horizon", 16, 8)]


def test_keys_that_came_or_went_differ() -> None:
    more = CONFIG | {"new": 1}
    assert differences(CONFIG, more) == [("new", "absent", 1)]
    assert differences(more, CONFIG) == [("new", 1, "absent")]


FREE = [
    ("offline.steps", 200),
    ("online.steps", 5),
    ("log_freq", 1),
    ("eval_freq", 0),
    ("save_freq", 7),
    ("save_checkpoint", False),
    ("eval.n_episodes", 5),
    ("eval", {"other": 1}),
    ("logger.tensorboard", False),
    ("resume", "must"),
    ("output_dir", "elsewhere"),
    ("job_name", "b"),
    ("compile", True),
    ("cuda_graph", False),
]


@pytest.mark.parametrize(("key", "value"), FREE, ids=[key for key, _ in FREE])
def test_steps_cadences_evaluation_and_logger_may_change(key: str, value: Any) -> None:
    assert differences(CONFIG, changed(key, value)) == []


def test_every_key_that_may_change_is_tried_here() -> None:
    assert {key if key in MUTABLE_KEYS else key.split(".")[0] for key, _ in FREE} == set(MUTABLE_KEYS)


def test_a_key_whose_name_begins_like_a_free_one_may_not_change() -> None:
    assert differences(CONFIG | {"eval_other": 1}, CONFIG | {"eval_other": 2}) == [("eval_other", 1, 2)]
    assert differences(changed("offline._target_", "y"), CONFIG) == [("offline._target_", "y", "x")]


def test_leaves_have_dotted_keys() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    run_in(tmp_path).record()
    message = r"another configuration \(policy.horizon was 16, now 8\); give another output_dir, or the same values"
    with pytest.raises(UserError, match=message):
        run_in(tmp_path, changed("policy.horizon", 8)).check_same()


# The record


def test_the_configuration_is_recorded(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    assert not run.exists
    run.record()
    assert run.exists
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG
    run.check_same()


def test_what_ran_is_recorded(tmp_path: Path) -> None:
    run_in(tmp_path).record()
    content = json.loads((tmp_path / "run.json").read_text())
    assert content["overrides"] == ["batch_size=8"]
    assert content["host"] == socket.gethostname()
    assert {"torch", "hydra-core", "numpy", "diffusers"} <= content["packages"].keys()
    assert {"command", "git_sha", "git_dirty", "python", "user", "time"} <= content.keys()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository that the code pretends to lie in."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, value in (("NAME", "a"), ("EMAIL", "a@b")):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", value)
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", value)
    (folder / "file").write_text("one\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        assert processes.run(["git", "-C", folder, *command]).returncode == 0
    monkeypatch.setattr(module, "__file__", str(folder / "run.py"))
    return folder


def test_the_commit_is_recorded(tmp_path: Path, repository: Path) -> None:
    run_in(tmp_path / "run").record()
    sha = processes.run(["git", "-C", repository, "rev-parse", "HEAD"]).stdout.strip()
    content = json.loads((tmp_path / "run/run.json").read_text())
    assert content["git_sha"] == sha
    assert content["git_dirty"] is False
    assert not (tmp_path / "run/git.diff").exists()


def test_changes_since_the_commit_are_recorded(tmp_path: Path, repository: Path) -> None:
    (repository / "file").write_text("two\n")
    run_in(tmp_path / "run").record()
    assert "-one\n+two\n" in (tmp_path / "run/git.diff").read_text()
    assert json.loads((tmp_path / "run/run.json").read_text())["git_dirty"] is True


def test_changes_in_another_encoding_are_recorded(tmp_path: Path, repository: Path) -> None:
    (repository / "file").write_bytes("zwölf\n".encode("latin-1"))
    run_in(tmp_path / "run").record()
    assert b"+zw\xf6lf\n" in (tmp_path / "run/git.diff").read_bytes()


def test_outside_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "run.py"))
    run_in(tmp_path / "run").record()
    assert json.loads((tmp_path / "run/run.json").read_text())["git_sha"] is None


# The status


def test_a_running_run_says_so(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    with run.running():
        found = status(tmp_path)
    assert found
    steps, process = {"step", "steps", "first_step"}, {"host", "pid", "job", "since", "time"}
    assert found.keys() == {"state", "error"} | steps | process
    assert (found["state"], found["step"], found["error"]) == ("running", 0, None)
    assert found["host"] == socket.gethostname()
    assert abs(found["time"] - time.time()) < 60


def test_its_time_and_step_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.01)
    run = run_in(tmp_path)
    with run.running():
        first = status(tmp_path)["time"]
        run.step = 5
        deadline = time.monotonic() + 120
        while status(tmp_path)["step"] != 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert status(tmp_path)["step"] == 5
        assert status(tmp_path)["time"] > first


def test_the_slurm_job_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with run_in(tmp_path).running():
        assert status(tmp_path)["job"] == "17"


def test_a_run_that_came_to_its_end_is_finished(tmp_path: Path) -> None:
    with run_in(tmp_path).running():
        pass
    assert status(tmp_path)["state"] == "finished"


@pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt()], ids=["exit", "Ctrl-C"])
def test_a_run_that_was_stopped_is_interrupted(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), run_in(tmp_path).running():
        raise error
    assert status(tmp_path)["state"] == "interrupted"
    assert status(tmp_path)["error"] is None


def test_a_run_that_raised_has_failed_and_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(ValueError, match="two lines"), run_in(tmp_path).running():
        raise ValueError("two lines\nof text")
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["error"] == "ValueError: two lines"
    assert "Traceback" in caplog.text


def test_a_users_mistake_is_logged_without_a_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(UserError), run_in(tmp_path).running():
        raise UserError("mend this")
    assert "mend this" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("text", ["the run was not finished", "Finished too early", "unfinished"])
def test_the_word_finished_is_in_the_status_of_finished_runs_alone(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=text), run_in(tmp_path).running():
        raise ValueError(text)
    assert "finished" not in (tmp_path / "status.json").read_text().lower()


def test_the_word_finished_is_not_in_the_status_of_a_running_one(tmp_path: Path) -> None:
    with run_in(tmp_path).running():
        text = (tmp_path / "status.json").read_text()
    assert "finished" not in text


def test_finished_is_there_once(tmp_path: Path) -> None:
    with run_in(tmp_path).running():
        pass
    assert (tmp_path / "status.json").read_text().count("finished") == 1


def test_a_status_that_cannot_be_written_does_not_hide_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    def fail() -> None:
        with run_in(tmp_path).running():
            monkeypatch.setattr(module, "write_json", full)
            raise UserError("The disk is full")

    with pytest.raises(UserError, match="The disk is full"):
        fail()


def test_a_folder_without_a_status_has_none(tmp_path: Path) -> None:
    assert status(tmp_path) is None
    (tmp_path / "status.json").write_text('{"state": "runn')
    assert status(tmp_path) is None


# Runs that were not finished


def ended(root: Path, name: str, state: str, config: dict[str, Any] = CONFIG, age: float = 0.0) -> Path:
    """A run of a day's folder, in some state."""
    folder = root / "2025-01-01" / name
    run_in(folder, config).record()
    (folder / "status.json").write_text(json.dumps({"state": state}))
    os.utime(folder / "status.json", (time.time() - age,) * 2)
    return folder


def test_the_newest_unfinished_run_of_equal_configuration_is_found(tmp_path: Path) -> None:
    ended(tmp_path, "older", "failed", age=100)
    newest = ended(tmp_path, "newest", "interrupted", age=50)
    ended(tmp_path, "finished", "finished")
    ended(tmp_path, "other", "interrupted", changed("policy.horizon", 8))
    assert newest_unfinished(tmp_path, CONFIG) == newest


def test_without_one_there_is_none(tmp_path: Path) -> None:
    ended(tmp_path, "finished", "finished")
    assert newest_unfinished(tmp_path, CONFIG) is None
    assert newest_unfinished(tmp_path / "nowhere", CONFIG) is None


def test_a_folder_is_a_runs_once_its_configuration_is_there(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    assert not holds_run(tmp_path)
    (tmp_path / "config.yaml").write_text("a: 1\n")
    assert holds_run(tmp_path)
