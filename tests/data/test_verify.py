"""robolearn-dataset: what it says of sound and broken sets, and that converting loses nothing."""

import json
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fakes.datasets import read_rows, write_dataset, write_rows

from robolearn.cli.dataset import main
from robolearn.data import LeRobotDataset
from robolearn.data.lerobot_format.convert import convert
from robolearn.data.lerobot_format.verify import verify
from robolearn.types import Window


def run(capsys, *argv: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        main([str(text) for text in argv])
    found = capsys.readouterr()
    return int(caught.value.code or 0), found.out + found.err


def read(folder: Path, cache: Path) -> dict[str, np.ndarray]:
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(cache)).load(torch.device("cpu"))
    batch = dataset.batch(torch.arange(dataset.num_frames), Window(reward=(0,)))
    found = {key: values.numpy() for key, values in batch.items()}
    return found | {"task": np.array(dataset.task_of(torch.arange(dataset.num_frames)))}


def change(path: Path, key: str, row: int, value) -> None:
    columns = read_rows(path)
    columns[key][row] = value
    write_rows(path, columns)


def change_json(path: Path, *keys: str, value) -> None:
    content = json.loads(path.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("image_dtype", ["video", "image", None])
def test_sound_sets(tmp_path: Path, capsys, version, image_dtype) -> None:
    folder = write_dataset(tmp_path / "set", version, image_dtype=image_dtype, length=8, image_size=32)
    assert verify(folder) == []
    status, text = run(capsys, "verify", folder)
    assert (status, "is sound: 3 episodes, 27 frames" in text) == (0, True)
    status, text = run(capsys, "info", folder)
    assert status == 0
    assert f"format    {version}" in text
    assert "successes 0 of 3 episodes" in text


def broken(folder: Path, what: str) -> list[str]:
    """Break a set in one place; what the fault has to name."""
    data = folder / "data/chunk-000/file-000.parquet"
    if what == "nan":
        change(data, "observation.state", 25, [float("nan"), 0.0])
        return [str(data), "NaN", "frame 5 of episode 1"]
    if what == "timestamp":
        change(data, "timestamp", 3, 0.35)
        return [str(data), "timestamp 0.35", "frame 3 of episode 0"]
    if what == "task":
        change(data, "task_index", 45, 7)
        return [str(data), "task_index 7", "episode 2"]
    if what == "index":
        change(data, "index", 22, 5)
        return [str(data), "episode 1", "index"]
    if what == "value":
        change(data, "action", 22, [900.0, 0.0])
        return ["stats.json", "max of action", "900"]
    if what == "total":
        change_json(folder / "meta/info.json", "total_tasks", value=4)
        return ["info.json", "total_tasks 4"]
    if what == "place":
        change(folder / "meta/episodes/chunk-000/file-000.parquet", "dataset_from_index", 1, 3)
        return ["episode 1", "3 to"]
    if what == "image stats":
        change_json(folder / "meta/stats.json", "observation.image", "mean", value=[[[0.1]]] * 3)
        return ["stats.json", "mean of observation.image"]
    if what == "truncated":
        video = folder / "videos/observation.image/chunk-000/file-000.mp4"
        video.write_bytes(video.read_bytes()[:-2000])
        return [str(video), "truncated"]
    if what == "cut":  # its index stands first, so that what is left can be decoded
        video = folder / "videos/observation.image/chunk-000/file-000.mp4"
        with (
            av.open(str(video)) as old,
            av.open(str(folder / "new.mp4"), "w", options={"movflags": "faststart"}) as new,
        ):
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        content = (folder / "new.mp4").read_bytes()
        video.write_bytes(content[: len(content) * 2 // 3])
        return [str(video), "episode 2", "truncated"]
    if what == "missing":
        (folder / "videos/observation.image/chunk-000/file-000.mp4").unlink()
        return ["file-000.mp4", "is missing"]
    raise ValueError(what)


KINDS = ["nan", "timestamp", "task", "index", "value", "total", "place", "image stats", "truncated", "cut", "missing"]


@pytest.mark.parametrize("what", KINDS)
def test_a_fault_is_named_with_its_place(tmp_path: Path, capsys, what: str) -> None:
    folder = write_dataset(tmp_path / "set", image_size=32)
    words = broken(folder, what)
    faults = verify(folder)
    assert any(all(word in fault for word in words) for fault in faults), faults
    status, text = run(capsys, "verify", folder)
    assert status == 1
    assert "is not sound" in text


def test_no_dataset_at_all(tmp_path: Path, capsys) -> None:
    status, text = run(capsys, "verify", tmp_path / "nowhere")
    assert status == 2
    assert text == f"{tmp_path / 'nowhere'} is no folder: name one that holds a LeRobot dataset.\n"
    status, text = run(capsys, "verify", tmp_path)
    assert (status, f"{tmp_path} holds no meta/info.json" in text) == (2, True)


def test_every_fault_is_told(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", image_size=32)
    broken(folder, "nan")
    broken(folder, "total")
    broken(folder, "timestamp")
    assert len(verify(folder)) >= 3


@pytest.mark.parametrize("image_dtype", ["video", "image", None])
@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_there_and_back(tmp_path: Path, version, image_dtype) -> None:
    old = write_dataset(tmp_path / "old", version, image_dtype=image_dtype, length=9, image_size=32)
    convert(old, tmp_path / "new", "v3.0")
    convert(tmp_path / "new", tmp_path / "back", "v2.1")
    assert verify(tmp_path / "new") == verify(tmp_path / "back") == []
    first = read(old, tmp_path / "cache")
    for name in ("new", "back"):
        other = read(tmp_path / name, tmp_path / "cache")
        assert first.keys() == other.keys()
        for key, values in first.items():
            np.testing.assert_array_equal(values, other[key], key)
    if version == "v2.1":
        lines = [(tmp_path / name / "meta/episodes.jsonl").read_text() for name in ("old", "back")]
        assert lines[0] == lines[1]
    for kind in ("observation.state", "action"):
        stats = [LeRobotDataset(root=str(tmp_path / name)).stats[kind]["std"] for name in ("old", "new", "back")]
        torch.testing.assert_close(stats[0], stats[1])
        torch.testing.assert_close(stats[0], stats[2])


@pytest.mark.parametrize("name", ["pusht_10_v21", "pusht_10_v30", "pusht_keypoints_v20"])
def test_recorded_sets_there_and_back(tmp_path: Path, shared: Path, name: str) -> None:
    """What LeRobot wrote: every number and every decoded pixel stays."""
    old = shared / "data" / name
    to, back = ("v3.0", "v2.1") if name[-3:] != "v30" else ("v2.1", "v3.0")
    convert(old, tmp_path / "new", to)
    convert(tmp_path / "new", tmp_path / "back", back)
    first = read(old, tmp_path / "cache")
    for each in ("new", "back"):
        other = read(tmp_path / each, tmp_path / "cache")
        for key, values in first.items():
            np.testing.assert_array_equal(values, other[key], key)


def test_an_episode_between_key_frames_is_encoded_again(tmp_path: Path, caplog) -> None:
    folder = write_dataset(tmp_path / "set", length=9, image_size=32)  # a key frame at every other frame of the file
    convert(folder, tmp_path / "old", "v2.1")
    assert "encoded again" in caplog.text
    one, other = (
        read(path, tmp_path / "cache")["observation.image"].astype(int) for path in (folder, tmp_path / "old")
    )
    assert np.abs(one - other).mean() < 4


def test_what_can_not_be_converted(tmp_path: Path, capsys) -> None:
    folder = write_dataset(tmp_path / "set", "v2.1", image_dtype=None)
    assert "already" in run(capsys, "convert", folder, tmp_path / "new", "--to", "v2.1")[1]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").touch()
    status, text = run(capsys, "convert", folder, tmp_path / "photos", "--to", "v3.0")
    assert (status, "new folder" in text) == (2, True)
    status, text = run(capsys, "verify", tmp_path / "nowhere")
    assert (status, "is no folder" in text, "dataset.root" in text.split(":")[0]) == (2, True, False)
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    status, text = run(capsys, "convert", folder, tmp_path / "new", "--to", "v3.0")
    assert (status, "episode_000001.parquet" in text) == (2, True)
    assert not (tmp_path / "new").exists()


def test_a_page_shows_an_episode(tmp_path: Path, capsys) -> None:
    folder = write_dataset(tmp_path / "set", length=8, image_size=32)
    status, text = run(capsys, "show", folder, "--episode", 1, "--out", tmp_path / "page.html")
    assert (status, str(tmp_path / "page.html") in text) == (0, True)
    page = (tmp_path / "page.html").read_text()
    assert page.count("<video") == 1
    assert page.count("<polyline") == 2 + 2 + 1  # state, action, reward
    assert "Episode 1" in page
    assert "9 frames" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert run(capsys, "show", folder, "--episode", 3)[0] == 2


def test_seeds_travel_along(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "set", image_dtype=None)
    path = folder / "meta/episodes/chunk-000/file-000.parquet"
    columns = read_rows(path) | {"seed": [5, 6, 9]}
    write_rows(path, columns)
    convert(folder, tmp_path / "old", "v2.1")
    convert(tmp_path / "old", tmp_path / "new", "v3.0")
    assert pq.read_table(tmp_path / "new/meta/episodes")["seed"].to_pylist() == [5, 6, 9]
