"""Decoded frames on disk: whole or not there, rebuilt when damaged, decoded once by many processes."""

import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from fakes.datasets import write_dataset

from robolearn.data import LeRobotDataset
from robolearn.data.video import decode, frame_cache
from robolearn.types import Window

CPU = torch.device("cpu")


def load(folder: Path, cache_dir: Path, tier="auto") -> torch.Tensor:
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(cache_dir), cache=tier).load(CPU)
    return dataset.batch(torch.arange(dataset.num_frames), Window())["observation.image"]


@pytest.fixture
def folder(tmp_path):
    return write_dataset(tmp_path / "d", length=8, image_size=32)


@pytest.fixture
def decodes(monkeypatch):
    calls, original = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda *a: calls.append(1) or original(*a))
    return calls


def test_decoded_once(folder, tmp_path, decodes):
    frames = [load(folder, tmp_path / "c", tier) for tier in ("auto", "host", "disk")]
    assert len(decodes) == 1
    assert all(torch.equal(frames[0], other) for other in frames)


def test_name_follows_content(folder, tmp_path, decodes):
    load(folder, tmp_path / "c")
    write_dataset(tmp_path / "other", length=8, image_size=32, seed=1)
    write_dataset(tmp_path / "same", length=8, image_size=32)
    load(tmp_path / "same", tmp_path / "c")
    assert len(decodes) == 1
    load(tmp_path / "other", tmp_path / "c")
    assert len(decodes) == 2


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("damage", ["truncated", "no record", "broken record", "no frames"])
def test_damage_is_noticed(folder, tmp_path, decodes, tier, damage):
    whole = load(folder, tmp_path / "c").clone()
    (entry,) = (path for path in (tmp_path / "c/frames").iterdir() if path.is_dir())
    if damage == "truncated":
        os.truncate(entry / "frames.u8", 1000)
    elif damage == "no record":
        (entry / "frames.json").unlink()
    elif damage == "broken record":
        (entry / "frames.json").write_text("{")
    else:
        (entry / "frames.u8").unlink()
    assert torch.equal(load(folder, tmp_path / "c", tier), whole)
    assert len(decodes) == 2


def test_changed_bytes_are_noticed(folder, tmp_path, decodes):
    whole = load(folder, tmp_path / "c").clone()
    (file,) = (tmp_path / "c/frames").glob("*/frames.u8")
    with file.open("r+b") as stream:
        stream.seek(500)
        stream.write(b"changed")
    assert torch.equal(load(folder, tmp_path / "c", "host"), whole)
    assert len(decodes) == 2


def test_failure_leaves_nothing(folder, tmp_path, monkeypatch):
    def fail(requests, shape, tolerance_s, write):
        write(0, torch.zeros(shape, dtype=torch.uint8).numpy())
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(decode, "decode", fail)
        with pytest.raises(KeyboardInterrupt):
            load(folder, tmp_path / "c")
    assert not [path for path in (tmp_path / "c/frames").iterdir() if path.is_dir()]
    assert len(load(folder, tmp_path / "c")) == 27


def test_frame_that_was_never_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "decode", lambda *arguments: None)
    with pytest.raises(RuntimeError, match="27 frames"):
        load(folder, tmp_path / "c")


def _load_slowly(folder: Path, cache_dir: Path, started, counter) -> None:
    original = decode.decode

    def slow(*arguments):
        with counter.get_lock():
            counter.value += 1
        started.set()
        time.sleep(1.0)
        original(*arguments)

    decode.decode = slow
    load(folder, cache_dir)


def test_processes_share_one_decode(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    started, counter = context.Event(), context.Value("i", 0)
    arguments = (folder, tmp_path / "c", started, counter)
    processes = [context.Process(target=_load_slowly, args=arguments, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    assert counter.value == 1


def test_killed_while_decoding(folder, tmp_path, decodes):
    context = multiprocessing.get_context("spawn")
    started, counter = context.Event(), context.Value("i", 0)
    arguments = (folder, tmp_path / "c", started, counter)
    process = context.Process(target=_load_slowly, args=arguments, daemon=True)
    process.start()
    assert started.wait(200)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    frames = load(folder, tmp_path / "c")
    assert len(decodes) == 1
    assert torch.equal(frames, load(folder, tmp_path / "other"))
    assert not list((tmp_path / "c/frames").glob(".*.[0-9]*/"))


def test_said_where_it_lies(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        load(folder, tmp_path / "c")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "robolearn.data.lerobot_dataset"]
    for word in (str(tmp_path / "c"), "main memory", "0.1 MB", "delete"):
        assert word in line


def test_record(folder, tmp_path):
    load(folder, tmp_path / "c")
    (file,) = (tmp_path / "c/frames").glob("*/frames.json")
    assert json.loads(file.read_text())["shape"] == [27, 3, 32, 32]


@pytest.mark.parametrize(("limit", "tier"), [(1.0, "host"), (0.00001, "disk")])
def test_tier_by_size(folder, tmp_path, caplog, limit, tier):
    with caplog.at_level(logging.INFO):
        LeRobotDataset(root=str(folder), cache_dir=str(tmp_path), max_host_gb=limit).load(CPU)
    assert f"dataset.cache={tier}" in caplog.text


def test_default_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOLEARN_CACHE", str(tmp_path / "elsewhere"))
    LeRobotDataset(root=str(folder)).load(CPU)
    assert list((tmp_path / "elsewhere/frames").glob("*/frames.u8"))


def test_files_are_read_again_only_where_they_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_cache, "SETTLED_S", 0.0)
    reads, read = [], frame_cache._file_digest
    monkeypatch.setattr(frame_cache, "_file_digest", lambda path: reads.append(path) or read(path))
    file, memory = tmp_path / "video.mp4", tmp_path / "digests"
    file.write_bytes(b"one")
    times = file.stat()
    time.sleep(0.05)
    first = frame_cache.digest([file], memory=memory)
    assert frame_cache.digest([file], memory=memory) == first == frame_cache.digest([file])
    assert len(reads) == 2  # once without a memory
    file.write_bytes(b"two")  # as long as before, and with its old time of change
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert frame_cache.digest([file], memory=memory) == frame_cache.digest([file]) != first
    (note,) = memory.iterdir()
    note.write_text("{")
    assert frame_cache.digest([file], memory=memory) == frame_cache.digest([file])


def test_a_file_that_was_just_written_is_not_remembered(tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"one")
    frame_cache.digest([tmp_path / "video.mp4"], memory=tmp_path / "digests")
    assert not (tmp_path / "digests").exists()
