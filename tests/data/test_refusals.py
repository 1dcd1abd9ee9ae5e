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
from fakes.refusals import Refuses

from robolearn.data import LeRobotDataset
from robolearn.data.video import frame_cache
from robolearn.types import Window

INFO, EPISODES = "meta/info.json", "meta/episodes/chunk-000/file-000.parquet"
DATA, VIDEO = "data/chunk-000/file-000.parquet", "videos/observation.image/chunk-000/file-000.mp4"
OLD_DATA = "data/chunk-000/episode_000001.parquet"
OLD_VIDEO = "videos/chunk-000/observation.image/episode_000001.mp4"


def open_all(folder: Path, tmp_path: Path, **options: Any) -> LeRobotDataset:
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(tmp_path / "cache"), **options)
    return dataset.load(torch.device("cpu"))


@pytest.fixture
def refused(tmp_path: Path, refuses: Refuses) -> Callable[..., None]:
    """Expect that a dataset is refused, about a key or a file, and that no frames are cached."""

    def expect(folder: Path, key: str | Path, varying: str | None = None, **options: Any) -> None:
        with refuses(key, varying):
            open_all(folder, tmp_path, **options)
        assert not list((tmp_path / "cache").glob("frames/*/frames.u8"))

    return expect


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


@pytest.mark.parametrize("name", ["meta/stats.json", "meta/tasks.parquet", EPISODES, DATA, VIDEO])
def test_missing_file_of_v30(new, name, refused):
    (new / name).unlink()
    refused(new, new / name if name != EPISODES else new / "meta/episodes")


def test_missing_info(new, refused):
    (new / INFO).unlink()
    refused(new, "dataset.root")


@pytest.mark.parametrize("name", ["meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl"])
def test_missing_meta_of_v21(old, name, refused):
    (old / name).unlink()
    refused(old, old / name)


@pytest.mark.parametrize("name", [OLD_DATA, OLD_VIDEO])
def test_missing_data_of_v21(old, tmp_path, name, refused):
    (old / name).unlink()
    refused(old, old / name)
    assert open_all(old, tmp_path, episodes=[0, 2]).num_frames == 18


@pytest.mark.parametrize("text", ["{", "[1]", "", "\x00\xff"])
def test_broken_json(new, old, text, refused):
    for folder, name in ((new, INFO), (new, "meta/stats.json"), (old, "meta/episodes.jsonl")):
        if text or name.endswith(".json"):
            (folder / name).write_text(text)
            refused(folder, folder / name)


@pytest.mark.parametrize("version", ["v1.6", "v2.2", "v4.0", None])
def test_unknown_version(new, version, refused):
    edit_info(new, lambda info: info.update(codebase_version=version))
    refused(new, new / INFO)


@pytest.mark.parametrize("key", ["codebase_version", "fps", "features", "total_frames", "data_path", "video_path"])
def test_lacking_key(new, key, refused):
    edit_info(new, lambda info: info.pop(key))
    refused(new, new / INFO)


@pytest.mark.parametrize(("key", "value"), [("fps", 0), ("fps", "ten"), ("features", []), ("total_frames", 1)])
def test_senseless_value(new, key, value, refused):
    edit_info(new, lambda info: info.update({key: value}))
    refused(new, new / INFO)


def test_unknown_placeholder(new, refused):
    edit_info(new, lambda info: info.update(data_path="data/{whatever}.parquet"))
    refused(new, new / INFO)


def test_no_action(new, refused):
    edit_info(new, lambda info: info["features"].pop("action"))
    refused(new, new / INFO)


@pytest.mark.parametrize("episodes", [[3], [-1], [0, 0], []])
def test_episodes_out_of_range(new, episodes, refused):
    refused(new, "dataset.episodes", episodes=episodes)


def test_truncated_video(new, old, refused):
    for folder, name in ((new, VIDEO), (old, OLD_VIDEO)):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        refused(folder, folder / name)


def test_no_video_at_all(old, refused):
    (old / OLD_VIDEO).write_bytes(b"something else")
    refused(old, old / OLD_VIDEO)


def test_damaged_images(old, refused):
    data = bytearray((old / OLD_VIDEO).read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 3000] = bytes(3000)
    (old / OLD_VIDEO).write_bytes(data)
    refused(old, old / OLD_VIDEO)


def test_short_video(new, refused):
    import numpy as np

    write_video(new / VIDEO, np.zeros((20, 32, 32, 3), np.uint8))
    refused(new, new / VIDEO)


def test_video_of_another_size(old, refused):
    import numpy as np

    write_video(old / OLD_VIDEO, np.zeros((9, 48, 32, 3), np.uint8))
    refused(old, old / OLD_VIDEO)


def test_video_begins_elsewhere(new, refused):
    edit_rows(new / EPISODES, lambda rows: rows["videos/observation.image/from_timestamp"].__setitem__(1, 0.83))
    refused(new, new / VIDEO)


def test_timestamps_off(new, old, refused):
    edit_rows(new / DATA, lambda rows: rows["timestamp"].__setitem__(10, 0.21))
    refused(new, new / DATA)
    edit_rows(old / OLD_DATA, lambda rows: rows.update(timestamp=[0.05 + t for t in rows["timestamp"]]))
    refused(old, old / OLD_DATA)


def test_timestamps_within_a_larger_tolerance(new, tmp_path):
    edit_rows(new / DATA, lambda rows: rows["timestamp"].__setitem__(10, 0.21))
    assert open_all(new, tmp_path, tolerance_s=0.02).num_frames == 27


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["action", "observation.state"])
def test_not_finite(new, tmp_path, key, value, refused):
    edit_rows(new / DATA, lambda rows: rows[key][12].__setitem__(1, value))
    refused(new, new / DATA)
    assert open_all(new, tmp_path, episodes=[0, 2]).num_frames == 18


def test_empty_value(new, refused):
    edit_rows(new / DATA, lambda rows: rows["action"].__setitem__(12, [None, 1.0]))
    refused(new, new / DATA)


def test_lacking_column(old, refused):
    edit_rows(old / OLD_DATA, lambda rows: rows.pop("action"))
    refused(old, old / OLD_DATA)


def test_another_shape(old, refused):
    edit_rows(old / OLD_DATA, lambda rows: rows.update(action=[[1.0, 2.0, 3.0]] * 9))
    refused(old, old / OLD_DATA)


def test_another_shape_in_info(new, refused):
    edit_info(new, lambda info: info["features"]["observation.image"].update(shape=[64, 64, 3]))
    refused(new, new / VIDEO)


def test_truncated_parquet(old, refused):
    data = (old / OLD_DATA).read_bytes()
    (old / OLD_DATA).write_bytes(data[:500])
    refused(old, old / OLD_DATA)


def test_lacking_frames(old, refused):
    edit_rows(old / OLD_DATA, lambda rows: [values.pop() for values in rows.values()])
    refused(old, old / OLD_DATA)


def test_frames_out_of_order(new, refused):
    edit_rows(new / DATA, lambda rows: rows["frame_index"].__setitem__(9, 5))
    refused(new, new / DATA)


def test_unknown_task(new, refused):
    edit_rows(new / DATA, lambda rows: rows["task_index"].__setitem__(9, 5))
    refused(new, new / DATA)


def test_episode_is_missing(old, refused):
    path = old / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[::2]))
    refused(old, old / "meta")


@pytest.mark.parametrize("statistic", [None, [float("nan"), 1.0], [1.0]])
def test_statistics(new, statistic, refused):
    path = new / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats["action"]["std"] = statistic
    if statistic is None:
        del stats["action"]["std"]
    path.write_text(json.dumps(stats))
    refused(new, new / "meta/stats.json")


def test_broken_image(tmp_path, refused):
    folder = write_dataset(tmp_path / "d", episodes=2, length=5, image_size=32, image_dtype="image")
    edit_rows(folder / DATA, lambda rows: rows["observation.image"][6].update(bytes=b"no image"))
    refused(folder, folder / DATA)


def test_image_of_another_size(tmp_path, refused):
    folder = write_dataset(tmp_path / "d", episodes=2, length=5, image_size=32, image_dtype="image")
    edit_info(folder, lambda info: info["features"]["observation.image"].update(shape=[32, 48, 3]))
    refused(folder, folder / DATA)


def test_disk_is_full(new, tmp_path, monkeypatch, refused):
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    refused(new, "dataset.cache_dir")
    assert not [path for path in (tmp_path / "cache/frames").iterdir() if path.is_dir()]


def test_disk_is_too_small(new, tmp_path, monkeypatch, refused):
    usage = frame_cache.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(frame_cache.shutil, "disk_usage", lambda path: usage)
    refused(new, "dataset.cache_dir")


def test_cache_cannot_be_written(new, tmp_path, refuses):
    (tmp_path / "cache").write_text("a file in the way")
    with refuses(tmp_path / "cache/frames"):
        open_all(new, tmp_path)


def test_gpu_that_there_is_not(new, refused):
    refused(new, "dataset.cache", cache="gpu")


def test_torchcodec_that_there_is_not(new, refused):
    try:
        import torchcodec  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        refused(new, "dataset.video_backend", video_backend="torchcodec")
    else:
        pytest.skip("torchcodec is installed")


def test_not_on_this_machine(tmp_path, monkeypatch, refuses):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with refuses("dataset.repo_id"):
        LeRobotDataset("lerobot/no_such_dataset")


def test_no_network_where_it_is_forbidden(tmp_path, monkeypatch, refuses):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with refuses("dataset.download"):
        LeRobotDataset("lerobot/no_such_dataset", download=True)


def test_found_in_the_home_of_lerobot(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LEROBOT_HOME", str(tmp_path))
    write_dataset(tmp_path / "me/mine", episodes=2, length=5, image_dtype=None)
    assert LeRobotDataset("me/mine").num_frames == 11


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({}, "dataset.repo_id"),
        ({"root": "no/such/folder"}, "dataset.root"),
        ({"repo_id": "a/b/c"}, "dataset.repo_id"),
        ({"root": "."}, "dataset.root"),
    ],
    ids=["none", "no folder", "id", "empty folder"],
)
def test_no_dataset(options, key, tmp_path, monkeypatch, refuses):
    monkeypatch.chdir(tmp_path)
    with refuses(key):
        LeRobotDataset(**options)


def test_what_is_left_out_must_be_there_and_is_not_needed(new, tmp_path, refused):
    refused(new, "dataset.exclude", exclude=["observation.imag"])
    everything = ["observation.image", "observation.state"]
    refused(new, "dataset.exclude", exclude=everything)
    before = open_all(new, tmp_path)
    (new / VIDEO).unlink()
    after = open_all(new, tmp_path, exclude=["observation.image"])
    assert list(after.spec.observation) == ["observation.state"]
    row = torch.tensor([5])
    expected, got = (dataset.batch(row, Window()) for dataset in (before, after))
    assert expected.keys() - got.keys() == {"observation.image", "observation.image_is_pad"}
    assert all(torch.equal(value, expected[key]) for key, value in got.items())
