"""What the writer writes is what the reader reads, at every moment."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from robolearn.data import LeRobotDataset
from robolearn.data.lerobot_format import writer
from robolearn.data.lerobot_format.episode_stats import column_stats, image_stats
from robolearn.data.lerobot_format.recorder import Recorder
from robolearn.data.lerobot_format.stats import aggregate
from robolearn.data.lerobot_format.writer import DatasetWriter
from robolearn.data.video.encode import Clip, VideoEncoder, concat_clips
from robolearn.episodes import Episode
from robolearn.errors import UserError
from robolearn.types import Feature, Spec, Window

SIZE = 16
SPEC = Spec(
    {"observation.state": Feature("STATE", (3,)), "observation.image": Feature("VISUAL", (3, SIZE, SIZE))},
    Feature("ACTION", (2,)),
    fps=10,
)


def episode(seed: int, length: int = 7) -> Episode:
    rng = np.random.default_rng(seed)
    base = np.linspace(0, 255, SIZE, dtype=np.uint8)[None, None, :, None].repeat(SIZE, 3)
    images = np.repeat(base, 3, 1).repeat(length + 1, 0) // 2 + rng.integers(0, 100, (length + 1, 3, 1, 1), np.uint8)
    return Episode(
        seed=seed,
        actions=rng.normal(size=(length, 2)).astype(np.float32),
        rewards=rng.uniform(size=length),
        successes=np.arange(length) == length - 1,
        terminated=True,
        truncated=False,
        observations={
            "observation.state": rng.normal(size=(length + 1, 3)).astype(np.float32),
            "observation.image": images.astype(np.uint8),
        },
    )


def open_writer(folder: Path, recorder: Recorder) -> DatasetWriter:
    return DatasetWriter(folder, 10, recorder.features(success=True), extra={"settings": {"quality": 1}})


def fill(folder: Path, episodes: list[Episode], recorder: Recorder, commit_every: int = 100) -> DatasetWriter:
    made = open_writer(folder, recorder)
    for number, each in enumerate(episodes, 1):
        made.add(recorder(each, each.actions))
        if number % commit_every == 0:
            made.commit()
    made.commit()
    return made


def read(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(tmp_path / "cache")).load(torch.device("cpu"))
    return dataset.batch(torch.arange(dataset.num_frames), Window(reward=(0,)))


EPISODES = [episode(0, 7), episode(1, 4), episode(2, 9)]


@pytest.mark.parametrize("encoder", [VideoEncoder(), VideoEncoder("libsvtav1", 18), None])
def test_numbers_are_equal_and_pictures_are_near(tmp_path: Path, encoder: VideoEncoder | None) -> None:
    fill(tmp_path / "set", EPISODES, Recorder(SPEC, "Do it.", encoder), commit_every=2)
    batch = read(tmp_path / "set", tmp_path)
    start = 0
    for number, each in enumerate(EPISODES):
        rows = slice(start, start + len(each))
        start += len(each)
        assert each.observations is not None
        np.testing.assert_array_equal(batch["action"][rows, 0], each.actions)
        np.testing.assert_array_equal(batch["observation.state"][rows, 0], each.observations["observation.state"][:-1])
        np.testing.assert_array_equal(batch["next.reward"][rows, 0], each.rewards.astype(np.float32))
        assert batch["next.success"][rows].tolist() == batch["next.done"][rows].tolist()
        assert batch["next.done"][rows].tolist() == [False] * (len(each) - 1) + [True]
        assert batch["episode_index"][rows].unique().tolist() == [number]
        images = batch["observation.image"][rows, 0].numpy().astype(int)
        worst = np.abs(images - each.observations["observation.image"][:-1]).max()
        assert worst <= (0 if encoder is None else 12)
    assert batch["index"].tolist() == list(range(start))


def test_commits_change_nothing_but_when_it_is_there(tmp_path: Path) -> None:
    recorder = Recorder(SPEC, "Do it.")
    fill(tmp_path / "once", EPISODES, recorder)
    fill(tmp_path / "often", EPISODES, recorder, commit_every=1)
    for name in ("data/chunk-000/file-000.parquet", "meta/info.json", "meta/stats.json", "meta/tasks.parquet"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "often" / name).read_bytes(), name
    one, other = (pq.read_table(tmp_path / name / "meta/episodes").to_pylist() for name in ("once", "often"))
    assert one == other
    assert [row["seed"] for row in one] == [0, 1, 2]
    for key, values in read(tmp_path / "once", tmp_path).items():
        assert torch.equal(values, read(tmp_path / "often", tmp_path)[key]), key


def test_statistics_are_those_of_all_frames(tmp_path: Path) -> None:
    fill(tmp_path / "set", EPISODES, Recorder(SPEC, "Do it."))
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    actions = np.concatenate([each.actions for each in EPISODES]).astype(np.float64)
    for name, value in {"mean": actions.mean(0), "std": actions.std(0), "min": actions.min(0)}.items():
        np.testing.assert_allclose(stats["action"][name], value, rtol=1e-6)
    images = np.concatenate([each.observations["observation.image"][:-1] for each in EPISODES if each.observations])
    mean = images.transpose(1, 0, 2, 3).reshape(3, -1).mean(1) / 255
    np.testing.assert_allclose(np.ravel(stats["observation.image"]["mean"]), mean, rtol=1e-6)
    assert stats["action"]["count"] == [len(actions)]


def test_image_statistics_are_exact() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 4), dtype=np.uint8)
    found, flat = image_stats(images), images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
    for name, value in {"mean": flat.mean(1), "std": flat.std(1), "min": flat.min(1), "max": flat.max(1)}.items():
        np.testing.assert_allclose(found[name].ravel(), value, rtol=1e-9)
    for name, share in (("q01", 0.01), ("q50", 0.5), ("q90", 0.9)):
        quantile = np.quantile(flat, share, axis=1, method="inverted_cdf")
        np.testing.assert_allclose(found[name].ravel(), quantile, rtol=1e-9)
    merged = aggregate([{"x": column_stats(np.arange(3.0))}, {"x": column_stats(np.arange(3.0, 9.0))}], Path())["x"]
    assert (merged["mean"], merged["std"]) == (4, pytest.approx(np.arange(9).std()))


@pytest.mark.parametrize("stage", ["videos", "data", "tasks", "stats", "episodes"])
def test_a_kill_at_any_place_of_a_commit_leaves_a_dataset_that_goes_on(tmp_path: Path, monkeypatch, stage) -> None:
    recorder = Recorder(SPEC, "Do it.")
    folder, whole = tmp_path / "set", tmp_path / "whole"
    fill(whole, EPISODES, recorder)
    made = fill(folder, EPISODES[:1], recorder)
    before = read(folder, tmp_path)
    made.add(recorder(EPISODES[2], EPISODES[2].actions))

    def die(*args) -> None:
        raise KeyboardInterrupt

    if stage in ("tasks", "stats", "episodes"):
        names = {"tasks": "_tasks_table", "stats": "total_stats"}
        target = (writer, names[stage]) if stage in names else (made, "_write_info")
        monkeypatch.setattr(*target, die)
    else:
        monkeypatch.setattr(made, {"videos": "_write_data", "data": "_write_meta"}[stage], die)
    with pytest.raises(KeyboardInterrupt):
        made.commit()
    monkeypatch.undo()
    assert {key: values.tolist() for key, values in read(folder, tmp_path).items()} == {
        key: values.tolist() for key, values in before.items()
    }
    again = open_writer(folder, recorder)
    assert again.num_episodes == 1
    for each in EPISODES[1:]:
        again.add(recorder(each, each.actions))
    again.commit()
    for key, values in read(whole, tmp_path).items():
        assert torch.equal(values, read(folder, tmp_path)[key]), key
    assert (folder / "meta/stats.json").read_text() == (whole / "meta/stats.json").read_text()
    assert not list(folder.rglob(".*"))


def test_full_files_make_room_for_the_next(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(writer, "MAX_VIDEO_S", 1.0)
    monkeypatch.setattr(writer, "DATA_MB", 0.0005)
    monkeypatch.setattr(writer, "CHUNKS_SIZE", 2)
    recorder = Recorder(SPEC, "Do it.")
    fill(tmp_path / "set", EPISODES, recorder, commit_every=2)
    for kind, suffix in (("videos/observation.image", "mp4"), ("data", "parquet")):
        files = sorted(str(p.relative_to(tmp_path / "set" / kind)) for p in (tmp_path / "set" / kind).rglob("*.*"))
        assert files == [f"chunk-00{c}/file-00{f}.{suffix}" for c, f in ((0, 0), (0, 1), (1, 0))]
    monkeypatch.undo()
    fill(tmp_path / "plain", EPISODES, recorder)
    for key, values in read(tmp_path / "plain", tmp_path).items():
        assert torch.equal(values, read(tmp_path / "set", tmp_path)[key]), key


def test_other_features_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "set", EPISODES[:1], Recorder(SPEC, "Do it."))
    with pytest.raises(UserError, match="observation.image"):
        open_writer(tmp_path / "set", Recorder(SPEC, "Do it.", None))


def test_equal_frames_become_equal_videos() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8) // 8 * 4
    assert len({VideoEncoder()(frames, 10).source for _ in range(4)}) == 1


def test_a_cut_between_key_frames_is_refused(tmp_path: Path) -> None:
    clip = VideoEncoder()(np.full((10, 3, SIZE, SIZE), 90, np.uint8), 10)
    concat_clips(tmp_path / "a.mp4", [Clip(clip.source, 4, start=2)], 10)
    with pytest.raises(UserError, match="no key frame at frame 3"):
        concat_clips(tmp_path / "b.mp4", [Clip(clip.source, 4, start=3)], 10)
    with pytest.raises(UserError, match="holds 8 of the 9 frames"):
        concat_clips(tmp_path / "c.mp4", [Clip(clip.source, 9, start=2)], 10)


def test_an_encoder_refuses_what_it_can_not_do() -> None:
    with pytest.raises(UserError, match="video_codec=h265"):
        VideoEncoder("h265")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="video_crf=70"):
        VideoEncoder("libx264", 70)
