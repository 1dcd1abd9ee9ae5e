"""Checkpoints: whole or not there, damage found, the right ones kept, and every generator's state in them."""

import dataclasses
import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.training import SPEC, Line, status, trained

from robolearn.checkpoints import store
from robolearn.checkpoints.locate import locate
from robolearn.checkpoints.store import (
    Checkpoints,
    CorruptCheckpointError,
    load_models,
    load_spec,
    load_trained,
    verified,
    verify,
)
from robolearn.errors import UserError
from robolearn.system.files import atomic_dir, write_text

FILES = ["model.safetensors", "state.pt", "config.yaml", "spec.json", "checksums.json"]


def made(folder: Path, **options: Any) -> Checkpoints:
    return Checkpoints(folder, "seed: 0\n", SPEC, **options)


def save(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        policy = Line()
        torch.nn.init.constant_(policy.line.weight, step)
        checkpoints.save(step, {"policy": policy}, policy, {"step": step})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def test_holds_weights_with_a_readable_configuration_beside_them(tmp_path: Path) -> None:
    save(made(tmp_path), 3)
    folder = tmp_path / "checkpoints/00000003"
    assert sorted(file.name for file in folder.iterdir()) == sorted(FILES)
    assert (folder / "config.yaml").read_text() == "seed: 0\n"
    assert load_spec(folder) == SPEC


def test_the_settings_of_the_recording_are_kept(tmp_path: Path) -> None:
    spec = dataclasses.replace(SPEC, settings={"render_quality": "fast"})
    policy = Line()
    folder = Checkpoints(tmp_path, "seed: 0\n", spec).save(1, {"policy": policy}, policy, {})
    assert load_spec(folder) == spec


def test_weights_are_read_back(tmp_path: Path) -> None:
    save(made(tmp_path), 3)
    policy = Line()
    load_models(tmp_path / "checkpoints/last", {"policy": policy})
    assert (policy.line.weight == 3).all()


def test_trained_weights_lie_apart_where_an_average_acts(tmp_path: Path) -> None:
    acting, trained, read = Line(), Line(), Line()
    folder = made(tmp_path).save(1, {"policy": acting}, trained, {})
    load_trained(folder, read)
    assert torch.equal(read.line.weight, trained.line.weight)
    load_models(folder, {"policy": read})
    assert torch.equal(read.line.weight, acting.line.weight)


def test_the_newest_is_restored(tmp_path: Path) -> None:
    save(made(tmp_path), 3, 6)
    assert made(tmp_path).latest() == tmp_path / "checkpoints/00000006"


def test_a_fresh_run_has_nothing_to_restore(tmp_path: Path) -> None:
    assert made(tmp_path).latest() is None


def test_last_moves_only_when_all_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = made(tmp_path)
    save(checkpoints, 3)

    def fail(*arguments: Any) -> None:
        assert (tmp_path / "checkpoints/last").readlink() == Path("00000003")
        raise RuntimeError("power cut")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        save(checkpoints, 6)
    assert steps(tmp_path) == [3]
    assert (tmp_path / "checkpoints/last").readlink() == Path("00000003")


def test_an_exception_leaves_no_part_of_a_folder(tmp_path: Path) -> None:
    def fill() -> None:
        with atomic_dir(tmp_path / "a") as folder:
            (folder / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "a") as folder:
        (folder / "file").write_text("all")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a/file").read_text() == "all"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_kill_left_while_saving_is_removed(tmp_path: Path) -> None:
    save(made(tmp_path), 3)
    for name in (".00000006.12345", ".00000001.removed"):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    made(tmp_path).latest()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000003", "last"]


def test_a_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a", "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken disk"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# Which are kept


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    save(made(tmp_path, keep_last=2, keep_best=0), 1, 2, 3, 4)
    assert steps(tmp_path) == [3, 4]


def test_the_best_one_is_kept_besides(tmp_path: Path) -> None:
    checkpoints = made(tmp_path, keep_last=1, keep_best=1)
    for step, rate in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.1)):
        save(checkpoints, step)
        checkpoints.record_metrics(step, {"success_rate": rate})
    assert steps(tmp_path) == [2, 4]
    assert (tmp_path / "checkpoints/best").readlink() == Path("00000002")
    assert json.loads((tmp_path / "checkpoints/best/score.json").read_text())["success_rate"] == 0.9


def test_among_equally_good_ones_the_newer_is_best(tmp_path: Path) -> None:
    checkpoints = made(tmp_path)
    save(checkpoints, 1, 2)
    for step in (1, 2):
        checkpoints.record_metrics(step, {"success_rate": 0.5})
    assert (tmp_path / "checkpoints/best").readlink() == Path("00000002")


def test_another_metric_may_choose_the_best(tmp_path: Path) -> None:
    checkpoints = made(tmp_path, metric="avg_max_reward")
    save(checkpoints, 1, 2)
    checkpoints.record_metrics(1, {"success_rate": 0.0, "avg_max_reward": 2.0})
    checkpoints.record_metrics(2, {"success_rate": 1.0, "avg_max_reward": 1.0})
    assert (tmp_path / "checkpoints/best").readlink() == Path("00000001")


def test_no_link_points_at_a_checkpoint_that_is_not_kept(tmp_path: Path) -> None:
    checkpoints = made(tmp_path, keep_last=1, keep_best=0)
    for step, rate in ((1, 0.9), (2, 0.1)):
        save(checkpoints, step)
        checkpoints.record_metrics(step, {"success_rate": rate})
    assert steps(tmp_path) == [2]
    assert not (tmp_path / "checkpoints/best").is_symlink()


def test_an_evaluation_without_a_checkpoint_is_not_noted(tmp_path: Path) -> None:
    checkpoints = made(tmp_path)
    save(checkpoints, 1)
    checkpoints.record_metrics(2, {"success_rate": 1.0})
    assert not (tmp_path / "checkpoints/best").is_symlink()


# Damage


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGE = {"truncated": truncate, "a bit flipped": flip, "emptied": empty, "deleted": Path.unlink}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_one_before_a_damaged_one_is_used(
    tmp_path: Path, name: str, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    save(made(tmp_path), 3, 6)
    damage(tmp_path / "checkpoints/00000006" / name)
    with caplog.at_level(logging.WARNING):
        assert made(tmp_path).latest() == tmp_path / "checkpoints/00000003"
    assert "00000006 is damaged" in caplog.text


def test_the_damaged_file_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(made(tmp_path), 3, 6)
    flip(tmp_path / "checkpoints/00000006/spec.json")
    made(tmp_path).latest()
    assert "00000006 is damaged (spec.json differs from what was written)" in caplog.text


@pytest.mark.parametrize("content", ["{}", "[]", "1"])
def test_checksums_of_nothing_are_damage(tmp_path: Path, content: str) -> None:
    save(made(tmp_path), 3)
    (tmp_path / "checkpoints/last/checksums.json").write_text(content)
    with pytest.raises(CorruptCheckpointError, match="checksums.json is not what was written"):
        verify(tmp_path / "checkpoints/last")


def test_all_damaged_is_told(tmp_path: Path) -> None:
    save(made(tmp_path), 3, 6)
    for step in (3, 6):
        flip(tmp_path / f"checkpoints/{step:08d}/state.pt")
    with pytest.raises(UserError, match=r"Every checkpoint in .*/checkpoints is damaged; .*another output_dir"):
        made(tmp_path).latest()


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_damaged_one_does_not_count_among_those_kept(tmp_path: Path, keep_last: int) -> None:
    save(made(tmp_path, keep_last=9), 3, 6)
    flip(tmp_path / "checkpoints/00000006/state.pt")
    checkpoints = made(tmp_path, keep_last=keep_last)
    checkpoints.latest()
    save(checkpoints, 5)
    assert steps(tmp_path) == [3, 5][-keep_last:]
    assert (tmp_path / "checkpoints/last").readlink() == Path("00000005")
    assert made(tmp_path).latest() == tmp_path / "checkpoints/00000005"


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    checkpoints = made(tmp_path)
    save(checkpoints, 3, 6)
    flip(tmp_path / "checkpoints/00000006/state.pt")
    checkpoints.latest()
    save(checkpoints, 6)
    verify(tmp_path / "checkpoints/00000006")


def test_a_sound_one_is_verified(tmp_path: Path) -> None:
    save(made(tmp_path), 3)
    verify(tmp_path / "checkpoints/00000003")
    flip(tmp_path / "checkpoints/00000003/model.safetensors")
    with pytest.raises(CorruptCheckpointError, match="model.safetensors differs from what was written"):
        verify(tmp_path / "checkpoints/00000003")


# Paths of a user's


@pytest.mark.parametrize("path", ["", "checkpoints", "checkpoints/last", "checkpoints/00000006"])
def test_a_checkpoint_is_found_by(tmp_path: Path, path: str) -> None:
    save(made(tmp_path), 3, 6)
    assert locate("checkpoint", str(tmp_path / path)) == tmp_path / "checkpoints/00000006"


def test_a_missing_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint=.*/no: there is no such folder; give a run's folder"):
        locate("checkpoint", str(tmp_path / "no"))
    with pytest.raises(UserError, match=r"no checkpoint is in this folder; give a run's folder"):
        locate("checkpoint", str(tmp_path))


def test_a_damaged_checkpoint_is_not_used(tmp_path: Path) -> None:
    save(made(tmp_path), 3)
    flip(tmp_path / "checkpoints/last/model.safetensors")
    with pytest.raises(UserError, match=r"is damaged \(model.safetensors differs .*; use another one of the run"):
        verified(tmp_path / "checkpoints/last")


# A full disk


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = made(tmp_path)
    save(checkpoints, 3)

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(UserError, match=r"The disk is full: .*00000006 could not be written; make room"):
        save(checkpoints, 6)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000003", "last"]


def test_another_error_of_the_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(store, "save_file", broken)
    with pytest.raises(OSError, match="broken disk"):
        save(made(tmp_path), 3)


class Large(Line):
    """A policy of 1.2 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.large = torch.nn.Parameter(torch.zeros(300_000))


def test_a_disk_that_is_full_keeps_what_it_holds(small_disk: Path) -> None:
    checkpoints = made(small_disk)
    policy = Large()
    checkpoints.save(3, {"policy": policy}, policy, {"step": 3})
    with pytest.raises(UserError, match="The disk is full"):
        checkpoints.save(6, {"policy": policy}, policy, {"step": 6})
    assert steps(small_disk) == [3]
    assert made(small_disk).latest() == small_disk / "checkpoints/00000003"


def test_a_run_on_a_full_disk_ends_with_a_sentence(small_disk: Path) -> None:
    with pytest.raises(UserError, match="The disk is full: .*00000004 could not be written"):
        trained(small_disk / "run", policy=Large(), ema=True)
    assert status(small_disk / "run")["state"] == "failed"
    assert "The disk is full" in status(small_disk / "run")["error"]


def test_a_full_disk_is_told_also_by_what_writes_curves(small_disk: Path) -> None:
    (small_disk / "large").write_bytes(bytes((2 << 20) - (64 << 10)))
    with pytest.raises(UserError, match=r"The disk is full: .*/run could not be written; make room and start again"):
        trained(small_disk / "run", steps=2000, log=1, checkpoint=False)
