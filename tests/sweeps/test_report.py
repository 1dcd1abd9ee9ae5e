"""robolearn-sweep: what it makes of a folder of runs in every state they can be in."""

import csv
import io
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fakes import processes

from robolearn.cli.sweep import as_csv, duration, main
from robolearn.config.run_name import run_name
from robolearn.errors import UserError
from robolearn.sweeps import launch_failures
from robolearn.sweeps.report import interval, read
from robolearn.system import slurm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from sweep_report import write_sweep


def write_run(sweep: Path, seed: int, rate: float = 1e-3, values: tuple[float, ...] = (), **state: Any) -> Path:
    overrides = ["policy=act", f"seed={seed}", f"optimizer.lr={rate}"]
    folder = sweep / run_name(overrides)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("checkpoints: {metric: success_rate}\n")
    (folder / "run.json").write_text(json.dumps({"overrides": overrides}))
    rows = [{"step": 10 * (i + 1), "train/loss": 1.0, "eval/success_rate": v} for i, v in enumerate(values)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 99, "tr')
    status = {"state": "finished", "step": 100, "steps": 100, "first_step": 0, "error": None, "job": None}
    (folder / "status.json").write_text(
        json.dumps({**status, "since": time.time() - 100, "time": time.time(), **state})
    )
    return folder


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Jobs in the queue, by id."""
    jobs: dict[str, str] = {}
    monkeypatch.setattr(slurm, "is_available", lambda: True)
    monkeypatch.setattr(slurm, "queue", lambda: jobs)
    return jobs


def states(sweep: Path) -> dict[str, str]:
    return {run.overrides["seed"]: run.state for run in read(sweep).runs}


SILENT = time.time() - 1000


@pytest.mark.parametrize(
    ("status", "job", "expected"),
    [
        ({}, None, "finished"),
        ({"state": "failed", "error": "ValueError: no"}, None, "failed"),
        ({"state": "interrupted"}, None, "interrupted"),
        ({"state": "interrupted"}, "PENDING", "pending"),
        ({"state": "running"}, "RUNNING", "running"),
        ({"state": "running"}, None, "running"),
        ({"state": "running", "time": SILENT}, None, "dead"),
        ({"state": "running", "time": SILENT}, "RUNNING", "running"),
        ({"state": "running", "time": SILENT}, "PENDING", "pending"),
    ],
    # Names of their own: those that pytest would make hold the time, which differs from one process to the next.
    ids=["done", "failed", "stopped", "queued", "at work", "alone", "dead", "silent at work", "silent in the queue"],
)
def test_states(tmp_path: Path, queue: dict[str, str], status: dict[str, Any], job: str | None, expected: str) -> None:
    write_run(tmp_path, 1, job="7_1", **status)
    if job:
        queue["7_1"] = job
    assert states(tmp_path) == {"1": expected}


def test_without_a_cluster_the_heartbeat_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "is_available", lambda: False)
    write_run(tmp_path, 1, state="running", time=SILENT, job="7")
    assert states(tmp_path) == {"1": "dead"}


def test_a_row_tells_step_remaining_time_last_and_best(tmp_path: Path) -> None:
    times = {"since": time.time() - 100, "time": time.time(), "first_step": 40}
    write_run(tmp_path, 1, values=(0.2, 0.6, 0.4), state="running", step=60, **times)
    (run,) = read(tmp_path).runs
    assert (run.step, run.steps, run.last, run.best) == (60, 100, 0.4, 0.6)
    assert run.eta_s == pytest.approx(40 * 100 / 20)
    assert read(tmp_path, minimize=True).runs[0].best == 0.2


def test_a_run_that_was_killed_came_as_far_as_it_logged(tmp_path: Path, queue: dict) -> None:
    write_run(tmp_path, 1, values=(0.2, 0.6), state="running", step=0, time=SILENT)
    (run,) = read(tmp_path).runs
    assert (run.state, run.step) == ("dead", 20)


def test_runs_are_joined_over_seeds(tmp_path: Path) -> None:
    for seed, values in enumerate([(0.5,), (0.6,), (0.7,)]):
        write_run(tmp_path, seed, 1e-3, values)
        write_run(tmp_path, seed, 1e-4, (values[0] + 0.2,), state="finished" if seed else "running")
    best, other = read(tmp_path).groups()
    assert best.overrides == {"optimizer.lr": "0.0001"}
    assert best.values == pytest.approx([0.8, 0.9])
    assert other.mean == pytest.approx(0.6)
    # mean 0.6, deviation 0.1: 0.6 -+ 4.303 * 0.1 / sqrt(3)
    assert (other.low, other.high) == pytest.approx((0.3516, 0.8484), abs=1e-3)


def test_intervals() -> None:
    assert interval([]) == (None, None, None)
    assert interval([0.5]) == (0.5, None, None)
    mean, low, high = interval([0.0, 1.0] * 50)
    # 1.9842169516 is Student's 97.5 % quantile for 99 degrees of freedom, 0.5025189076 the deviation.
    assert (mean, high - low) == pytest.approx((0.5, 2 * 1.9842169516 * 0.5025189076 / 10), rel=1e-8)


def test_what_went_wrong_is_told_with_its_log(tmp_path: Path, queue: dict, capsys: pytest.CaptureFixture[str]) -> None:
    failed = write_run(tmp_path, 1, state="failed", error="ValueError: no such thing")
    (failed / "train.log").write_text("Traceback\n")
    dead = write_run(tmp_path, 2, state="running", time=SILENT, job="9_1")
    (tmp_path / ".submitit/9_1").mkdir(parents=True)
    log = tmp_path / ".submitit/9_1/9_1_0_log.err"
    log.write_text("Killed\n")
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert f"failed: {failed.name}: ValueError: no such thing\n  {failed / 'train.log'}\n" in out
    assert f"dead: {dead.name}: exited without an error message" in out
    assert f"\n  {log}\n" in out
    assert "2 runs, 1 failed, 1 dead" in out


def test_runs_of_the_grid_that_have_not_started_are_pending(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 1e-3, (0.5,))
    (tmp_path / "multirun.yaml").write_text(
        "hydra: {sweeper: {_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper, params: null},"
        " overrides: {task: [policy=act, 'seed=1,2,3', optimizer.lr=0.001]}}\n"
    )
    assert states(tmp_path) == {"1": "finished", "2": "pending", "3": "pending"}


def test_a_run_whose_job_could_not_begin_is_failed_until_it_is_submitted_again(tmp_path: Path) -> None:
    planned = ["policy=act", "seed=2", "optimizer.lr=0.001"]
    write_run(tmp_path, 1)
    launch_failures.record(
        tmp_path, tmp_path / "seed-2_0", planned, "job 7 exited without an error message", tmp_path / "7.err"
    )
    (failed,) = (run for run in read(tmp_path).runs if run.state == "failed")
    assert (failed.name, failed.overrides["seed"], failed.log) == ("seed-2_0", "2", tmp_path / "7.err")
    write_run(tmp_path, 2)
    assert states(tmp_path) == {"1": "finished", "2": "finished"}
    shutil.rmtree(tmp_path / run_name(planned))
    launch_failures.forget(tmp_path, tmp_path / "seed-2_0")
    assert states(tmp_path) == {"1": "finished"}


def test_csv_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    for seed in (1, 2):
        write_run(sweep, seed, values=(0.1 * seed,), error="</script>,\"'" if seed == 2 else None)
    rows = list(csv.DictReader(io.StringIO(as_csv(read(sweep)))))
    assert [(row["seed"], row["optimizer.lr"], row["state"], float(row["last"])) for row in rows] == [
        ("1", "0.001", "finished", 0.1),
        ("2", "0.001", "finished", 0.2),
    ]
    main([str(sweep), "--json", "-"])
    content = json.loads(capsys.readouterr().out)
    assert [run["best"] for run in content["runs"]] == [0.1, 0.2]
    assert content["groups"][0]["mean"] == pytest.approx(0.15)
    main([str(sweep), "--html", str(tmp_path / "page.html"), "--csv", str(tmp_path / "runs.csv")])
    text = (tmp_path / "page.html").read_text()
    assert text.count("</script>") == 1
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    data = json.loads(re.findall(r"const data = (.*);\n", text)[0])
    assert [run["metric"] for run in data["runs"]] == [[[10, 0.1]], [[10, 0.2]]]
    assert (tmp_path / "runs.csv").read_text().count("\n") == 3


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium, which is not here")
def test_the_page_draws_in_a_browser(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", runs=20, lines=20)
    main([str(tmp_path / "sweep"), "--html", str(tmp_path / "page.html")])
    text = drawn(tmp_path / "page.html")
    assert text.count('class="run"') == 60  # in the coordinates and in two charts of curves
    assert text.count("<tr") > 20


def drawn(page: Path, attempts: int = 3) -> str:
    """What a page has become once its scripts have run; a browser that hangs, as on one core it may, starts anew."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    profile = f"--user-data-dir={page.parent}/profile{attempts}"  # one that others use may be locked
    try:
        return processes.run([*command, profile, page.as_uri()], seconds=60).stdout
    except AssertionError:
        if attempts == 1:
            raise
        return drawn(page, attempts - 1)


MISTAKES = {
    "no folder": (["nowhere"], "nowhere: there is no such folder"),
    "none given": ([], "Which sweep?"),
    "empty": (["."], "holds no sweep"),
    "option": (["sweep", "--jsn", "x"], "did you mean '--json'?"),
    "metric": (["sweep", "--metric", "sucess_rate"], "did you mean 'success_rate'?"),
    "no such place": (["sweep", "--csv", "no/such/file"], "no/such/file cannot be written"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    argv, text = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    if "sweep" in argv:
        write_run(tmp_path / "sweep", 1, values=(0.5,))
    with pytest.raises(SystemExit) as stop:
        main(argv)
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert text in err


def test_a_runs_own_folder_is_refused_with_the_right_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path, 1)
    with pytest.raises(UserError, match="give the folder of the sweep"):
        read(folder)


def test_durations() -> None:
    assert [duration(s) for s in (None, 0, 59.6, 3700, 90000)] == ["-", "0 s", "1 min 0 s", "1 h 1 min", "1 d 1 h"]


def test_a_thousand_runs_in_seconds(tmp_path: Path) -> None:
    write_sweep(tmp_path, runs=1000, lines=20)
    before = os.times()
    done = processes.run([sys.executable, "-m", "robolearn.cli.sweep", tmp_path])
    # Of the processor, which a busy machine does not make more.
    assert os.times().children_user - before.children_user < 5
    assert "1000 runs, 1000 finished" in done.stdout
