"""Verification of a dataset: every file is read, every frame decoded, every statistic recomputed."""

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.data.lerobot_format import validation
from robolearn.data.lerobot_format.columns import STRING_DTYPES, FrameColumns, as_numpy
from robolearn.data.lerobot_format.episode_stats import column_stats
from robolearn.data.lerobot_format.meta import DatasetMeta, EpisodeMeta, read_json, read_lines, read_meta, read_table
from robolearn.data.lerobot_format.stats import RawStats, parse_stats
from robolearn.data.video import camera_frames, decode
from robolearn.errors import UserError

RunningStats = Mapping[str, np.ndarray]
STAT_NAMES = ("min", "max", "mean", "std")
NUMBERS_RTOL = 1e-4
# Recorded from a sample of frames before they were encoded, sometimes from smaller images.
IMAGES_ATOL = 0.02


@dataclass
class _EpisodeRows:
    """The numbers of an episode that could be read, and the row of its file where it begins."""

    meta: EpisodeMeta
    offset: int
    columns: dict[str, np.ndarray]


def verify(root: Path, tolerance_s: float = 1e-4) -> list[str]:
    """The faults of a dataset, as sentences that name the file and the episode; none for a valid one.

    Args:
        root: Its folder.
        tolerance_s: How far, in seconds, a frame may lie from its nominal time.
    """
    try:
        meta = read_meta(root)
    except UserError as error:
        return [str(error)]
    info = read_json(root / "meta" / "info.json")
    faults = [*_description(meta, info)]
    episodes: list[_EpisodeRows] = []
    faults += _data(meta, tolerance_s, episodes)
    faults += _stats(meta, episodes)
    for key in meta.cameras:
        faults += _camera(meta, key, episodes, tolerance_s)
    return faults


def _description(meta: DatasetMeta, info: Mapping[str, Any]) -> Iterator[str]:
    path = meta.root / "meta" / "info.json"
    count = len(meta.episodes)
    if info.get("total_tasks") != len(meta.tasks):
        yield f"{path} has total_tasks {info.get('total_tasks')}, but {len(meta.tasks)} are listed beside it."
    for name, text in (info.get("splits") or {}).items():
        ends = [part for part in str(text).split(":") if part.isdigit()]
        if any(int(part) > count for part in ends):
            yield f"{path} has the split {name} {text}, but there are {count} episodes."
    if sorted(meta.tasks) != list(range(len(meta.tasks))):
        yield f"{meta.root / 'meta'} numbers its tasks {sorted(meta.tasks)}, not from 0 without a gap."
    if meta.version == "v3.0":
        yield from _table_of_episodes(meta)


def _table_of_episodes(meta: DatasetMeta) -> Iterator[str]:
    start = 0
    for file in sorted((meta.root / "meta" / "episodes").glob("*/*.parquet")):
        names = ["episode_index", "length", "dataset_from_index", "dataset_to_index"]
        try:
            rows = read_table(file, names).to_pylist()
        except UserError as error:
            yield str(error)
            return
        for row in rows:
            if row["episode_index"] >= len(meta.episodes):
                yield (
                    f"{file} lists episode {row['episode_index']}, which info.json does not count: a collection was "
                    "stopped while it wrote; its command, given again, repairs this."
                )
                return
            found = (row["dataset_from_index"], row["dataset_to_index"])
            if found != (start, start + row["length"]):
                yield (
                    f"{file} places episode {row['episode_index']} at the frames {found[0]} to {found[1]} of the set, "
                    f"where {start} to {start + row['length']} are its own."
                )
            start += row["length"]


def _data(meta: DatasetMeta, tolerance_s: float, episodes: list[_EpisodeRows]) -> Iterator[str]:
    """Faults of the parquet files; what is sound is added to `episodes`."""
    by_file: dict[str, list[EpisodeMeta]] = {}
    for episode in meta.episodes:
        by_file.setdefault(episode.data_file, []).append(episode)
    starts = np.cumsum([0, *(episode.length for episode in meta.episodes)])
    for name, members in by_file.items():
        path = meta.root / name
        try:
            columns = _columns(meta, path, members[0].index)
        except UserError as error:
            yield str(error)
            continue
        owner = columns["episode_index"].reshape(-1)
        if foreign := sorted(set(owner.tolist()) - {episode.index for episode in members}):
            yield f"{path} holds frames of episode {foreign[0]}, which meta/ does not place there."
        for episode in members:
            rows = np.flatnonzero(owner == episode.index)
            try:
                if not rows.size:
                    raise UserError(f"{path} holds no frame of episode {episode.index}.", key=str(path))
                validation.check_rows(path, episode, rows)
                frames = {key: values[rows] for key, values in columns.items()}
                validation.check_frames(path, episode, frames, meta, tolerance_s)
            except UserError as error:
                yield str(error)
                continue
            wanted = starts[episode.index] + np.arange(episode.length)
            if not np.array_equal(frames["index"].reshape(-1), wanted):
                yield f"{path} numbers the frames of episode {episode.index} other than {wanted[0]} onwards (index)."
            episodes.append(_EpisodeRows(episode, int(rows[0]), frames))
    episodes.sort(key=lambda each: each.meta.index)


def _columns(meta: DatasetMeta, path: Path, episode: int) -> dict[str, np.ndarray]:
    wanted = {
        key: column
        for key, column in meta.columns.items()
        if not column.is_visual and column.dtype not in STRING_DTYPES
    }
    table = read_table(path, list(wanted), episode=episode)
    return {key: as_numpy(table, key, column, path) for key, column in wanted.items()}


def _stats(meta: DatasetMeta, episodes: list[_EpisodeRows]) -> Iterator[str]:
    """Faults of the statistics of numbers, of the whole set and of each episode."""
    if not episodes:
        return
    if len(episodes) == len(meta.episodes):
        for key in episodes[0].columns:
            if key in meta.stats:
                found = column_stats(np.concatenate([each.columns[key] for each in episodes]))
                yield from _compare(f"{meta.stats_file}", key, meta.stats[key], found)
    recorded = dict(recorded_stats(meta))
    for each in episodes:
        for key, stats in recorded.get(each.meta.index, {}).items():
            if key in each.columns:
                where = f"{meta.root / 'meta'} (episode {each.meta.index})"
                yield from _compare(where, key, stats, column_stats(each.columns[key]))


def recorded_stats(meta: DatasetMeta) -> Iterator[tuple[int, RawStats]]:
    """The statistics of each episode, where the format has them."""
    if meta.version == "v2.1":
        for row in read_lines(meta.stats_file):
            yield row["episode_index"], parse_stats(row["stats"], meta.stats_file)
    if meta.version == "v3.0":
        for file in sorted((meta.root / "meta" / "episodes").glob("*/*.parquet")):
            for row in read_table(file).to_pylist():
                yield row["episode_index"], stats_of_row(row)


def stats_of_row(row: Mapping[str, Any]) -> RawStats:
    """The statistics in a row of the table of episodes."""
    stats: RawStats = {}
    for name, value in row.items():
        if name.startswith("stats/") and value is not None:
            key, _, kind = name.removeprefix("stats/").rpartition("/")
            stats.setdefault(key, {})[kind] = np.asarray(value, dtype=np.float64)
    return stats


def _compare(where: str, key: str, recorded: RunningStats, found: RunningStats) -> Iterator[str]:
    scale = np.maximum(np.abs(np.asarray(found["max"], float)), np.abs(np.asarray(found["min"], float)))
    for name in STAT_NAMES:
        if name not in recorded:
            yield f"{where} lacks the statistic {name} of {key}."
            continue
        want = np.asarray(found[name], float).reshape(-1)
        have = recorded[name].reshape(-1).astype(float)
        if have.shape != want.shape:
            yield f"{where} holds {name} of {key} with {have.size} numbers, where {want.size} belong."
            continue
        off = np.abs(have - want)
        wrong = ~(off <= NUMBERS_RTOL * np.maximum(scale.reshape(-1), 1e-6))
        if wrong.any():
            position = int(np.flatnonzero(wrong)[0])
            yield (
                f"{where} says that {name} of {key} is {have[position]:.6g} (component {position}), but the "
                f"frames make it {want[position]:.6g}."
            )


class _Histogram:
    """Counts pixel values of a camera per channel, from several threads."""

    def __init__(self, channels: int) -> None:
        self.counts = np.zeros((channels, 256), np.int64)
        self.guard = threading.Lock()

    def __call__(self, row: int, image: np.ndarray) -> None:
        found = np.stack([np.bincount(channel.reshape(-1), minlength=256) for channel in image])
        with self.guard:
            self.counts += found

    def stats(self) -> dict[str, np.ndarray]:
        levels, total = np.arange(256) / 255, self.counts.sum(axis=1)
        mean = self.counts @ levels / total
        return {"mean": mean, "std": np.sqrt(np.maximum(self.counts @ levels**2 / total - mean**2, 0))}


def _camera(meta: DatasetMeta, key: str, episodes: list[_EpisodeRows], tolerance_s: float) -> Iterator[str]:
    """Faults of a camera's images: each frame is decoded."""
    histogram, sound = _Histogram(meta.columns[key].shape[0]), True
    by_file: dict[str, list[_EpisodeRows]] = {}
    is_video = meta.columns[key].dtype == "video"
    for each in episodes:
        by_file.setdefault(each.meta.videos[key].file if is_video else each.meta.data_file, []).append(each)
    for name, members in by_file.items():
        path = meta.root / name
        if is_video and path.is_file() and (fault := _length(meta, key, path, members)):
            yield fault
        if _decode(meta, key, members, tolerance_s, histogram) is None:
            continue
        sound = False
        faults = (_decode(meta, key, [each], tolerance_s, lambda row, image: None) for each in members)
        yield from filter(None, dict.fromkeys(faults))
    if not sound or len(episodes) < len(meta.episodes):
        return
    for name, found in histogram.stats().items():
        recorded = meta.stats.get(key, {}).get(name)
        if recorded is None or recorded.size != found.size:
            yield f"{meta.stats_file} lacks the statistic {name} of {key}."
        elif not np.abs(recorded.reshape(-1) - found).max() <= IMAGES_ATOL:
            yield (
                f"{meta.stats_file} says that {name} of {key} is {np.round(recorded.reshape(-1), 3).tolist()}, but the "
                f"images make it {np.round(found, 3).tolist()}."
            )


def _decode(
    meta: DatasetMeta, key: str, members: list[_EpisodeRows], tolerance_s: float, write: decode.WriteFrame
) -> str | None:
    """Decode the images of some episodes of one file; what is wrong, or None."""
    metas = tuple(each.meta for each in members)
    starts = np.cumsum([0, *(each.meta.length for each in members)])
    columns = {"timestamp": np.concatenate([each.columns["timestamp"] for each in members])}
    table = FrameColumns(metas, columns, starts, tuple(each.offset for each in members))
    try:
        camera_frames.decode_camera(meta, table, key, "av", tolerance_s, write)
    except UserError as error:
        return str(error)
    return None


def _length(meta: DatasetMeta, key: str, path: Path, members: list[_EpisodeRows]) -> str | None:
    """What is wrong with the number of frames in a video."""
    try:
        found = decode.count_frames(path)
    except UserError as error:
        return str(error)
    last = max(members, key=lambda each: each.meta.videos[key].start)
    wanted = round(last.meta.videos[key].start * meta.fps) + last.meta.length
    if found == wanted:
        return None
    return f"{path} holds {found} frames, but the episodes up to {last.meta.index} that lie there need {wanted}."
