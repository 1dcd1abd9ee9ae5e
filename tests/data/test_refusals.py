"""Every dataset that is refused, with the file, the episode and the way out in its message."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.datasets import read_rows, write_dataset, write_rows, write_video

from robolearn.data import LeRobotDataset
from robolearn.data.video import frame_cache
from robolearn.errors import UserError
from robolearn.types import Window

INFO, EPISODES = "meta/info.json", "meta/episodes/chunk-000/file-000.parquet"
DATA, VIDEO = "data/chunk-000/file-000.parquet", "videos/observation.image/chunk-000/file-000.mp4"
OLD_DATA = "data/chunk-000/episode_000001.parquet"
OLD_VIDEO = "videos/chunk-000/observation.image/episode_000001.mp4"


def open_all(folder: Path, tmp_path: Path, **options: Any) -> LeRobotDataset:
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(tmp_path / "cache"), **options)
    return dataset.load(torch.device("cpu"))


def refused(folder: Path, tmp_path: Path, *words: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_all(folder, tmp_path, **options)
    message = str(caught.value)
    print(message)
    for word in words:
        assert word in message
    assert "\n" not in message
    assert message.endswith(".")
    assert not list((tmp_path / "cache").glob("frames/*/frames.u8"))
    return message


def edit_info(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    info = json.loads((folder / INFO).read_text())
    change(info)
    (folder / INFO).write_text(json.dumps(info))


def edit_rows(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rows = read_rows(path)
    change(rows)
    write_rows(path, rows)


@pytest.fixture
def new(tmp_path):
    return write_dataset(tmp_path / "new", "v3.0", episodes=3, length=8, image_size=32)


@pytest.fixture
def old(tmp_path):
    return write_dataset(tmp_path / "old", "v2.1", episodes=3, length=8, image_size=32)


@pytest.mark.parametrize("name", [INFO, "meta/stats.json", "meta/tasks.parquet", EPISODES, DATA, VIDEO])
def test_missing_file_of_v30(new, tmp_path, name):
    (new / name).unlink()
    refused(new, tmp_path, str((new / name).parents[name == EPISODES]) if name != INFO else "dataset.root")


@pytest.mark.parametrize("name", ["meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl"])
def test_missing_meta_of_v21(old, tmp_path, name):
    (old / name).unlink()
    refused(old, tmp_path, str(old / name), "is missing")


@pytest.mark.parametrize("name", [OLD_DATA, OLD_VIDEO])
def test_missing_data_of_v21(old, tmp_path, name):
    (old / name).unlink()
    refused(old, tmp_path, str(old / name), "is missing", "episode 1")
    assert open_all(old, tmp_path, episodes=[0, 2]).num_frames == 18


@pytest.mark.parametrize("text", ["{", "[1]", "", "\x00\xff"])
def test_broken_json(new, old, tmp_path, text):
    for folder, name in ((new, INFO), (new, "meta/stats.json"), (old, "meta/episodes.jsonl")):
        if text or name.endswith(".json"):
            (folder / name).write_text(text)
            refused(folder, tmp_path, str(folder))


@pytest.mark.parametrize("version", ["v1.6", "v2.2", "v4.0", None])
def test_unknown_version(new, tmp_path, version):
    edit_info(new, lambda info: info.update(codebase_version=version))
    refused(new, tmp_path, INFO, "codebase_version", "v3.0")


@pytest.mark.parametrize("key", ["codebase_version", "fps", "features", "total_frames", "data_path", "video_path"])
def test_lacking_key(new, tmp_path, key):
    edit_info(new, lambda info: info.pop(key))
    refused(new, tmp_path, INFO, repr(key))


@pytest.mark.parametrize(("key", "value"), [("fps", 0), ("fps", "ten"), ("features", []), ("total_frames", 1)])
def test_senseless_value(new, tmp_path, key, value):
    edit_info(new, lambda info: info.update({key: value}))
    refused(new, tmp_path, INFO, key)


def test_unknown_placeholder(new, tmp_path):
    edit_info(new, lambda info: info.update(data_path="data/{whatever}.parquet"))
    refused(new, tmp_path, INFO, "data_path", "placeholder")


def test_no_action(new, tmp_path):
    edit_info(new, lambda info: info["features"].pop("action"))
    refused(new, tmp_path, INFO, "'action'")


@pytest.mark.parametrize("episodes", [[3], [-1], [0, 0], []])
def test_episodes_out_of_range(new, tmp_path, episodes):
    refused(new, tmp_path, "dataset.episodes", episodes=episodes)


def test_truncated_video(new, old, tmp_path):
    for folder, name in ((new, VIDEO), (old, OLD_VIDEO)):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        refused(folder, tmp_path, name, "episode", "truncated")


def test_no_video_at_all(old, tmp_path):
    (old / OLD_VIDEO).write_bytes(b"something else")
    refused(old, tmp_path, OLD_VIDEO, "episode 1")


def test_damaged_pictures(old, tmp_path):
    data = bytearray((old / OLD_VIDEO).read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 3000] = bytes(3000)
    (old / OLD_VIDEO).write_bytes(data)
    refused(old, tmp_path, OLD_VIDEO, "episode 1")


def test_short_video(new, tmp_path):
    import numpy as np

    write_video(new / VIDEO, np.zeros((20, 32, 32, 3), np.uint8))
    refused(new, tmp_path, VIDEO, "episode 2", "ends at 1.9 s")


def test_video_of_another_size(old, tmp_path):
    import numpy as np

    write_video(old / OLD_VIDEO, np.zeros((9, 48, 32, 3), np.uint8))
    refused(old, tmp_path, OLD_VIDEO, "episode 1", "48 x 32", "32 x 32")


def test_video_begins_elsewhere(new, tmp_path):
    edit_rows(new / EPISODES, lambda rows: rows["videos/observation.image/from_timestamp"].__setitem__(1, 0.83))
    refused(new, tmp_path, VIDEO, "episode 1", "dataset.tolerance_s")


def test_timestamps_off(new, old, tmp_path):
    edit_rows(new / DATA, lambda rows: rows["timestamp"].__setitem__(10, 0.21))
    refused(new, tmp_path, DATA, "episode 1", "frame 2", "0.21 s")
    edit_rows(old / OLD_DATA, lambda rows: rows.update(timestamp=[0.05 + t for t in rows["timestamp"]]))
    refused(old, tmp_path, OLD_DATA, "episode 1", "dataset.tolerance_s")


def test_timestamps_within_a_larger_tolerance(new, tmp_path):
    edit_rows(new / DATA, lambda rows: rows["timestamp"].__setitem__(10, 0.21))
    assert open_all(new, tmp_path, tolerance_s=0.02).num_frames == 27


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_not_finite(new, tmp_path, key, value):
    edit_rows(new / DATA, lambda rows: rows[key][12].__setitem__(1, value))
    refused(new, tmp_path, DATA, "episode 1", "frame 4", key)
    assert open_all(new, tmp_path, episodes=[0, 2]).num_frames == 18


def test_empty_value(new, tmp_path):
    edit_rows(new / DATA, lambda rows: rows["action"].__setitem__(12, [None, 1.0]))
    refused(new, tmp_path, DATA, "frame 4 of episode 1", "'action'", "empty")


def test_lacking_column(old, tmp_path):
    edit_rows(old / OLD_DATA, lambda rows: rows.pop("action"))
    refused(old, tmp_path, OLD_DATA, "episode 1", "'action'")


def test_another_shape(old, tmp_path):
    edit_rows(old / OLD_DATA, lambda rows: rows.update(action=[[1.0, 2.0, 3.0]] * 9))
    refused(old, tmp_path, OLD_DATA, "episode 1", "'action'", "[2]")


def test_another_shape_in_info(new, tmp_path):
    edit_info(new, lambda info: info["features"]["observation.image"].update(shape=[64, 64, 3]))
    refused(new, tmp_path, VIDEO, "episode 0", "64 x 64")


def test_truncated_parquet(old, tmp_path):
    data = (old / OLD_DATA).read_bytes()
    (old / OLD_DATA).write_bytes(data[:500])
    refused(old, tmp_path, OLD_DATA, "episode 1")


def test_lacking_frames(old, tmp_path):
    edit_rows(old / OLD_DATA, lambda rows: [values.pop() for values in rows.values()])
    refused(old, tmp_path, OLD_DATA, "episode 1", "8 frames", "9")


def test_frames_out_of_order(new, tmp_path):
    edit_rows(new / DATA, lambda rows: rows["frame_index"].__setitem__(9, 5))
    refused(new, tmp_path, DATA, "episode 1", "frame_index 5")


def test_unknown_task(new, tmp_path):
    edit_rows(new / DATA, lambda rows: rows["task_index"].__setitem__(9, 5))
    refused(new, tmp_path, DATA, "episode 1", "task_index 5")


def test_episode_is_missing(old, tmp_path):
    path = old / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::2]))
    refused(old, tmp_path, "episode 2 where episode 1 belongs")


@pytest.mark.parametrize("statistic", [None, [float("nan"), 1.0], [1.0]])
def test_statistics(new, tmp_path, statistic):
    path = new / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["std"] = statistic
    if statistic is None:
        del stats["action"]["std"]
    path.write_text(json.dumps(stats))
    refused(new, tmp_path, "stats.json", "'std'", "'action'")


def test_broken_image(tmp_path):
    folder = write_dataset(tmp_path / "d", episodes=2, length=5, image_size=32, image_dtype="image")
    edit_rows(folder / DATA, lambda rows: rows["observation.image"][6].update(bytes=b"no picture"))
    refused(folder, tmp_path, DATA, "episode 1", "frame 1")


def test_image_of_another_size(tmp_path):
    folder = write_dataset(tmp_path / "d", episodes=2, length=5, image_size=32, image_dtype="image")
    edit_info(folder, lambda info: info["features"]["observation.image"].update(shape=[32, 48, 3]))
    refused(folder, tmp_path, DATA, "episode 0", "32 x 48")


def test_disk_is_full(new, tmp_path, monkeypatch):
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    refused(new, tmp_path, "dataset.cache_dir", "MB")
    assert not [path for path in (tmp_path / "cache/frames").iterdir() if path.is_dir()]


def test_disk_is_too_small(new, tmp_path, monkeypatch):
    usage = frame_cache.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda path: usage)
    refused(new, tmp_path, "dataset.cache_dir", "MB")


def test_cache_cannot_be_written(new, tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(UserError, match="dataset.cache_dir"):
        open_all(new, tmp_path)


def test_gpu_that_there_is_not(new, tmp_path):
    refused(new, tmp_path, "dataset.cache=gpu", "device=cpu", cache="gpu")


def test_torchcodec_that_there_is_not(new, tmp_path):
    try:
        import torchcodec  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        refused(
            new, tmp_path, "dataset.video_backend=torchcodec", "dataset.video_backend=av", video_backend="torchcodec"
        )
    else:
        pytest.skip("torchcodec is installed")


def test_not_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(UserError) as caught:
        LeRobotDataset("lerobot/no_such_dataset")
    print(caught.value)
    for way in ("dataset.root=", "robolearn-collect", "dataset.download=true"):
        assert way in str(caught.value)


def test_no_network_where_it_is_forbidden(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as caught:
        LeRobotDataset("lerobot/no_such_dataset", download=True)
    print(caught.value)


def test_found_in_the_home_of_lerobot(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    write_dataset(tmp_path / "me/mine", episodes=2, length=5, image_dtype=None)
    assert LeRobotDataset("me/mine").num_frames == 11


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({}, "dataset.root="),
        ({"root": "no/such/folder"}, "is no folder"),
        ({"repo_id": "a/b/c"}, "NAME/DATASET"),
        ({"root": "."}, "meta/info.json"),
    ],
)
def test_no_dataset(options, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=word) as caught:
        LeRobotDataset(**options)
    print(caught.value)


def test_what_is_left_out_must_be_there_and_is_not_needed(new, tmp_path):
    refused(new, tmp_path, "dataset.exclude: observation.imag is none", exclude=["observation.imag"])
    everything = ["observation.image", "observation.state"]
    refused(new, tmp_path, "dataset.exclude leaves no observation", exclude=everything)
    before = open_all(new, tmp_path)
    (new / VIDEO).unlink()
    after = open_all(new, tmp_path, exclude=["observation.image"])
    assert list(after.spec.observation) == ["observation.state"]
    row = torch.tensor([5])
    expected, got = (dataset.batch(row, Window()) for dataset in (before, after))
    assert expected.keys() - got.keys() == {"observation.image", "observation.image_is_pad"}
    assert all(torch.equal(value, expected[key]) for key, value in got.items())
