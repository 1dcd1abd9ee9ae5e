"""robolearn-collect as a process: what is recorded does not depend on how, and survives what may happen."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes import collecting, preloaded, processes
from fakes.datasets import write_dataset

from robolearn.cli.collect import main
from robolearn.collecting.demonstration_workers import DemonstrationTask, Noise
from robolearn.data import LeRobotDataset
from robolearn.data.lerobot_format.recorder import Recorder
from robolearn.types import Window

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def toy(tmp_path: Path) -> list[str]:
    return collecting.write_conf(tmp_path / "conf")


def command(*argv: str) -> dict[str, Any]:
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    collect = [sys.executable, "-m", "robolearn.cli.collect", *argv]
    return {"command": collect, "stderr": subprocess.STDOUT, "env": environment}


def collect(*argv: str, status: int = 0) -> str:
    done = preloaded.run("robolearn.cli.collect", argv, cwd=Path.cwd(), env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == status, done.stdout
    return done.stdout


def refused(capsys, *argv: str) -> str:
    """The sentence of a mistake that is found before any process is started."""
    with pytest.raises(SystemExit) as caught:
        main(list(argv))
    assert caught.value.code == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    return text


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "data").to_pylist()


def columns(folder: Path) -> dict[str, np.ndarray]:
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(folder.parent / "cache")).load(torch.device("cpu"))
    batch = dataset.batch(torch.arange(dataset.num_frames), Window(reward=(0,)))
    return {key: values.numpy() for key, values in batch.items()}


def test_the_number_of_workers_changes_no_byte(tmp_path: Path, toy: list[str]) -> None:
    one = collect(*toy, f"out={tmp_path}/one", "episodes=6", "workers=1")
    collect(*toy, f"out={tmp_path}/three", "episodes=6", "workers=3")
    data = "data/chunk-000/file-000.parquet"
    assert (tmp_path / "one" / data).read_bytes() == (tmp_path / "three" / data).read_bytes()
    for key, values in columns(tmp_path / "one").items():
        np.testing.assert_array_equal(values, columns(tmp_path / "three")[key], key)
    seeds = [row["seed"] for row in pq.read_table(tmp_path / "one/meta/episodes").to_pylist()]
    failures = seeds[-1] + 1 - len(seeds)
    assert failures > 0, "a demonstrator that never fails shows nothing"
    assert f"{failures} of {seeds[-1] + 1} attempts failed and were left out" in one
    assert all(row["next.success"] for row in rows(tmp_path / "one") if row["next.done"])


def test_a_collection_goes_on(tmp_path: Path, toy: list[str], capsys) -> None:
    whole, parts = f"out={tmp_path}/whole", f"out={tmp_path}/parts"
    collect(*toy, whole, "episodes=5", "seed=7")
    collect(*toy, parts, "episodes=2", "seed=7")
    collect(*toy, parts, "episodes=5", "seed=7")
    for name in ("data/chunk-000/file-000.parquet", "meta/stats.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert "holds 5 episodes already" in collect(*toy, parts, "episodes=5", "seed=7")
    other = refused(capsys, *toy, parts, "episodes=5", "seed=8")
    assert "seed was 7, now 8" in other


def test_failures_can_be_kept(tmp_path: Path, toy: list[str]) -> None:
    text = collect(*toy, f"out={tmp_path}/all", "episodes=6", "keep_failures=true", "video=false")
    table = rows(tmp_path / "all")
    last = [row for row in table if row["next.done"]]
    assert len(last) == 6
    failed = sum(not row["next.success"] for row in last)
    assert 0 < failed < 6
    assert f"{failed} of 6 attempts failed and were kept too" in text
    assert columns(tmp_path / "all")["observation.images.top"].shape[2:] == (3, 6, 8)


@pytest.mark.parametrize(("label", "other"), [("clean", "executed_action"), ("executed", "clean_action")])
def test_noise_is_executed_and_the_label_is_chosen(tmp_path: Path, toy: list[str], label: str, other: str) -> None:
    collect(*toy, f"out={tmp_path}/noisy", "episodes=2", "action_noise=0.05", f"action_label={label}")
    found = columns(tmp_path / "noisy")
    action, second = found["action"][:, 0], found[other]
    executed, clean = (second, action) if label == "clean" else (action, second)
    assert 0.02 < np.abs(executed - clean).std() < 0.1
    state = found["observation.state"][:, 0]
    inside = ~found["next.done"][:-1]
    np.testing.assert_allclose(np.diff(state, axis=0)[inside], executed[:-1][inside], atol=1e-5)
    assert len(np.unique(clean[found["episode_index"] == 0, 0])) == 1


def test_noise_stays_within_bounds_but_for_actions_beyond_them() -> None:
    from gymnasium.spaces import Box

    noise = Noise(5.0, Box(-1, 1, (2,)), seed=0)
    drawn = np.stack([noise(np.array([0.5, -3.0], np.float32)) for _ in range(100)])
    assert drawn[:, 0].min() == -1
    assert drawn[:, 0].max() == 1
    assert drawn[:, 1].min() == -3
    assert drawn[:, 1].max() == 1
    again = Noise(5.0, Box(-1, 1, (2,)), seed=0)
    np.testing.assert_array_equal(again(np.zeros(2, np.float32)), Noise(5.0, Box(-1, 1, (2,)), 0)(np.zeros(2)))


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Processes below one, by /proc."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(text[1]) == pid:
            number = int(path.parent.name)
            found += [number, *children(number)]
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_collection_is_sound_and_goes_on(tmp_path: Path, toy: list[str], number: int) -> None:
    out = tmp_path / "set"
    slow = [*toy, "env.kwargs.crash_in=slow", "workers=2", f"out={out}"]
    with processes.started(**command(*slow, "episodes=3000"), stdout=subprocess.PIPE) as process:
        if number == signal.SIGKILL:  # what it had until its first commit
            wait_for(lambda: (out / "meta/info.json").is_file())
        else:
            wait_for(lambda: len(children(process.pid)) > 3)
            time.sleep(2)
        workers = children(process.pid)
        assert len(workers) > 2
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does: to all of them
        else:
            process.kill()
        text, _ = process.communicate(timeout=60)
        wait_for(lambda: not any(map(alive, workers)))
    recorded = len([row for row in rows(out) if row["next.done"]])
    assert recorded >= 1
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"Stopped with {recorded} of 3000 episodes" in text
        assert "Traceback" not in text
    columns(out)
    total = json.loads((out / "meta/info.json").read_text())["total_episodes"] + 1
    collect(*slow, f"episodes={total}")
    whole = f"out={tmp_path}/whole"
    collect(*[text for text in slow if not text.startswith("out=")], whole, f"episodes={total}")
    data = "data/chunk-000/file-000.parquet"
    assert (out / data).read_bytes() == (tmp_path / "whole" / data).read_bytes()


def test_a_worker_that_dies_or_breaks_costs_no_episode(tmp_path: Path, toy: list[str]) -> None:
    out = tmp_path / "set"
    text = collect(*toy, f"out={out}", "env.kwargs.crash_in=die", "episodes=3", status=2)
    assert "The demonstration process died (exit code 1" in text
    text = collect(*toy, f"out={out}", "demonstrator.crash=true", "episodes=3", status=2)
    assert "Reacher failed in the episode with seed" in text
    assert "no way" in text
    assert "Traceback" not in text


def test_a_full_disk_keeps_what_was_recorded(small_disk: Path, tmp_path: Path, toy: list[str]) -> None:
    out, ballast = small_disk / "set", small_disk / "ballast"
    ballast.write_bytes(bytes((2 << 20) - (450 << 10)))
    collect(*toy, f"out={out}", "episodes=3")
    before = (out / "meta/info.json").read_bytes()
    text = collect(*toy, f"out={out}", "episodes=400", status=2)
    assert "The disk is full: 3 of 400 episodes are in" in text
    assert "Traceback" not in text
    assert (out / "meta/info.json").read_bytes() == before
    assert len(columns_beside(out, tmp_path)["index"]) == sum(row["length"] for row in episodes(out))
    ballast.unlink()
    collect(*toy, f"out={out}", "episodes=20")
    collect(*toy, f"out={tmp_path}/whole", "episodes=20")
    data = "data/chunk-000/file-000.parquet"
    assert (out / data).read_bytes() == (tmp_path / "whole" / data).read_bytes()


def episodes(folder: Path) -> list[dict]:
    return pq.read_table(folder / "meta/episodes").to_pylist()


def columns_beside(folder: Path, place: Path) -> dict[str, np.ndarray]:
    """The columns of a set on a disk without room for decoded frames."""
    copy = shutil.copytree(folder, place / "copy")
    return columns(copy)


def test_a_policy_is_recorded_whatever_the_workers(tmp_path: Path, toy: list[str]) -> None:
    """Rollouts depend on seed and batch size alone, also when they were interrupted within a batch."""
    plain = [*toy, "env.features_map={agent_pos: observation.environment_state, pixels/top: null}"]
    collect(*plain, f"out={tmp_path}/shown", "episodes=3")
    done = processes.run(
        [sys.executable, "-m", "robolearn.cli.train", *plain, "dataset=lerobot", f"dataset.root={tmp_path}/shown"]
        + ["policy=diffusion", "policy.down_dims=[8,16]", "policy.diffusion_step_embed_dim=8", "policy.crop_shape=null"]
        + ["policy.num_inference_steps=2", "offline.steps=2", "eval_freq=0", "batch_size=4", "device=cpu"]
        + [f"output_dir={tmp_path}/run", "num_workers=0", "eval.n_videos=0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    rolled = [*plain, f"policy.path={tmp_path}/run", "policy.batch_size=4", "keep_failures=true", "device=cpu"]
    collect(*rolled, f"out={tmp_path}/one", "episodes=7", "workers=1")
    collect(*rolled, f"out={tmp_path}/two", "episodes=3", "workers=2")
    collect(*rolled, f"out={tmp_path}/two", "episodes=7", "workers=2")
    data = "data/chunk-000/file-000.parquet"
    assert (tmp_path / "one" / data).read_bytes() == (tmp_path / "two" / data).read_bytes()
    assert [row["seed"] for row in episodes(tmp_path / "one")] == list(range(7))
    found = columns(tmp_path / "one")
    inside = ~found["next.done"][:-1]
    moved = np.diff(found["observation.environment_state"][:, 0], axis=0)
    np.testing.assert_allclose(moved[inside], found["action"][:-1, 0][inside], atol=1e-5)


def test_giving_up(tmp_path: Path, toy: list[str]) -> None:
    text = collect(*toy, f"out={tmp_path}/set", "demonstrator.speed=0.0001", "patience=4", status=2)
    assert "4 episodes in a row failed" in text
    assert not (tmp_path / "set").exists()


def test_what_is_wrong_is_told_before_anything_is_written(tmp_path: Path, toy: list[str], capsys) -> None:
    out = f"out={tmp_path}/set"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    write_dataset(tmp_path / "other")
    assert "cat.png" in refused(capsys, *toy, f"out={tmp_path}/photos")
    assert "robolearn-collect has not made" in refused(capsys, *toy, f"out={tmp_path}/other")
    assert "is a file" in refused(capsys, *toy, f"out={tmp_path}/photos/cat.png")
    assert "out has no value yet" in refused(capsys, *toy)
    assert "did you mean 'episodes'?" in refused(capsys, *toy, out, "episode=3")
    assert "action_label" in refused(capsys, *toy, out, "action_label=exeuted")
    assert "workers=0" in refused(capsys, *toy, out, "workers=0")
    assert "episodes=0" in refused(capsys, *toy, out, "episodes=0")
    assert "video_codec=vp9" in refused(capsys, *toy, out, "video_codec=vp9")
    assert "takes no 'sped'" in refused(capsys, *toy, out, "+demonstrator.sped=3")
    assert "video=false" in refused(capsys, *toy, out, "+env.kwargs.image=[5,7,3]")
    (tmp_path / "conf/demonstrator/reach.yaml").unlink()
    assert "policy.path=CHECKPOINT" in refused(capsys, *toy, out)
    assert not (tmp_path / "set").exists()


def test_a_missing_library_is_told_before_anything_is_written(
    tmp_path: Path, toy: list[str], capsys, monkeypatch
) -> None:
    def broken(*args, **kwargs):
        raise ImportError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("robolearn.envs.factory.gym.make", broken)
    assert "apt-get install -y libgl1" in refused(capsys, *toy, f"out={tmp_path}/set")
    assert not (tmp_path / "set").exists()


def test_recording_needs_no_torch() -> None:
    code = "import sys, robolearn.collecting.demonstration_workers; sys.exit('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code]).returncode == 0
    assert DemonstrationTask.__doc__
    assert Recorder.__doc__
