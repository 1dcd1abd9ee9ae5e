"""Between the layouts of LeRobot's formats: v2.0 and v2.1 have files for every episode, v3.0 joins them.

Numeric columns and encoded images are copied unchanged; a video is encoded again only where an
episode begins between key frames, so that it can't be cut there.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from robolearn.data.lerobot_format.columns import STRING_DTYPES, FrameColumns, as_numpy
from robolearn.data.lerobot_format.episode_stats import column_stats, image_stats
from robolearn.data.lerobot_format.meta import DatasetMeta, EpisodeMeta, read_json, read_lines, read_meta, read_table
from robolearn.data.lerobot_format.recorder import EpisodeRecord
from robolearn.data.lerobot_format.stats import RawStats
from robolearn.data.lerobot_format.verify import recorded_stats
from robolearn.data.lerobot_format.writer import INDEX_FEATURES, DatasetWriter
from robolearn.data.video import camera_frames, encode
from robolearn.data.video.encode import Clip, VideoEncoder
from robolearn.errors import UserError
from robolearn.system.files import atomic_dir, write_json, write_text

log = logging.getLogger(__name__)

CHUNKS_SIZE = 1000
DATA_V2 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_V2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
TOTALS = ("codebase_version", "total_episodes", "total_frames", "total_tasks", "total_videos", "total_chunks")
LAYOUT_KEYS = (*TOTALS, "chunks_size", "data_path", "video_path", "data_files_size_in_mb", "video_files_size_in_mb")
EPISODE_KEYS = ("episode_index", "tasks", "length", "dataset_from_index", "dataset_to_index")
"""What the description of an episode always holds; further values, such as the seed that made it, travel along."""
COMMIT_EVERY = 200


def convert(root: Path, out: Path, to: Literal["v2.1", "v3.0"]) -> None:
    """Write a dataset in another format's layout; the folder appears once it is complete.

    Args:
        root: The dataset, which is not changed.
        out: A new folder.
        to: The format.

    Raises:
        UserError: The dataset is broken or of that format already, or the folder is not new, or the disk is full.
    """
    meta = read_meta(root)
    if meta.version == to:
        raise UserError(f"{root} is in format {to} already; there is nothing to convert.", key=str(root))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; give the name of a new folder.", key=str(out))
    with atomic_dir(out.absolute()) as folder:
        (_to_v30 if to == "v3.0" else _to_v21)(meta, folder)


class _EpisodeReader:
    """The episodes of a dataset, whatever its format."""

    def __init__(self, meta: DatasetMeta) -> None:
        self.meta = meta
        self.info = read_json(meta.root / "meta" / "info.json")
        self.cameras = [key for key, column in meta.columns.items() if column.dtype == "video"]
        self.visual = list(meta.cameras)
        self.stats = dict(recorded_stats(meta))
        self._file: tuple[str, pa.Table] | None = None

    def __iter__(self) -> Iterator[tuple[EpisodeMeta, pa.Table]]:
        episodes = tqdm(self.meta.episodes, desc="converting", unit="episode", disable=None, dynamic_ncols=True)
        for episode in episodes:
            yield episode, self._table(episode)

    def _table(self, episode: EpisodeMeta) -> pa.Table:
        if self._file is None or self._file[0] != episode.data_file:
            table = read_table(self.meta.root / episode.data_file, episode=episode.index)
            self._file = (episode.data_file, table.replace_schema_metadata(None))
        table = self._file[1]
        rows = np.flatnonzero(table["episode_index"].to_numpy() == episode.index)
        if len(rows) != episode.length or rows[-1] - rows[0] + 1 != episode.length:
            raise UserError(
                f"{self.meta.root / episode.data_file} does not hold the {episode.length} frames of episode "
                f"{episode.index} together: look at it with robolearn-dataset verify {self.meta.root}.",
                key=str(self.meta.root / episode.data_file),
            )
        return table.slice(int(rows[0]), episode.length)

    def clip(self, episode: EpisodeMeta, key: str) -> Clip:
        """Where an episode's video lies."""
        location = episode.videos[key]
        return Clip(self.meta.root / location.file, episode.length, round(location.start * self.meta.fps))

    def camera_stats(self, episode: EpisodeMeta, table: pa.Table) -> RawStats:
        """The statistics of an episode's images, as recorded or, where they are not, from its frames."""
        known = self.stats.get(episode.index, {})
        missing = [key for key in self.visual if key not in known]
        found = {key: image_stats(self.frames(episode, key, table)) for key in missing}
        return {key: known[key] if key in known else found[key] for key in self.visual}

    def frames(self, episode: EpisodeMeta, key: str, table: pa.Table) -> np.ndarray:
        """An episode's images (T, C, H, W), decoded."""
        found = np.empty((episode.length, *self.meta.columns[key].shape), np.uint8)
        seconds = table["timestamp"].to_numpy()
        offset = 0
        if self.meta.columns[key].dtype == "image":
            whole = read_table(self.meta.root / episode.data_file, ["episode_index"])["episode_index"].to_numpy()
            offset = int(np.flatnonzero(whole == episode.index)[0])
        starts = np.array([0, episode.length])
        one = FrameColumns((episode,), {"timestamp": seconds}, starts, (offset,))
        camera_frames.decode_camera(self.meta, one, key, "av", 1e-4, found.__setitem__)
        return found


def _to_v30(meta: DatasetMeta, folder: Path) -> None:
    source = _EpisodeReader(meta)
    features = {key: dict(each) for key, each in source.info["features"].items() if key not in INDEX_FEATURES}
    writer = DatasetWriter(folder, meta.fps, features, source.info.get("robot_type"), _extra(source.info))
    writer.tasks = [meta.tasks[index] for index in sorted(meta.tasks)]
    lines = {row["episode_index"]: row for row in read_lines(meta.root / "meta" / "episodes.jsonl")}
    for count, (episode, table) in enumerate(source, 1):
        tasks = [meta.tasks[index] for index in table["task_index"].to_pylist()]
        writer.add(
            EpisodeRecord(
                columns=table,
                task=tasks,
                clips={key: source.clip(episode, key) for key in source.cameras},
                stats=source.camera_stats(episode, table),
                extra={key: value for key, value in lines[episode.index].items() if key not in EPISODE_KEYS},
                times=table["timestamp"].to_numpy(),
            )
        )
        if count % COMMIT_EVERY == 0:
            writer.commit()
    writer.commit()


def _to_v21(meta: DatasetMeta, folder: Path) -> None:
    source = _EpisodeReader(meta)
    (folder / "meta").mkdir()
    lines: dict[str, list[dict[str, Any]]] = {"episodes": [], "episodes_stats": [], "tasks": []}
    lines["tasks"] = [{"task_index": index, "task": text} for index, text in sorted(meta.tasks.items())]
    rows = _extra_columns(meta)
    for episode, table in source:
        parts = {"episode_index": episode.index, "episode_chunk": episode.index // CHUNKS_SIZE}
        path = folder / DATA_V2.format(**parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        for key in source.cameras:
            _write_video(source, episode, key, table, folder / VIDEO_V2.format(video_key=key, **parts))
        tasks = dict.fromkeys(meta.tasks[index] for index in table["task_index"].to_pylist())
        line = {"episode_index": episode.index, "tasks": list(tasks), "length": episode.length}
        lines["episodes"].append(line | rows.get(episode.index, {}))
        stats = _numeric_stats(meta, episode, table) | source.camera_stats(episode, table)
        plain = {key: {name: np.asarray(value).tolist() for name, value in of.items()} for key, of in stats.items()}
        lines["episodes_stats"].append({"episode_index": episode.index, "stats": plain})
    for name, content in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in content)
        write_text(folder / "meta" / f"{name}.jsonl", text)
    write_json(folder / "meta" / "info.json", _info_v21(source))


def _numeric_stats(meta: DatasetMeta, episode: EpisodeMeta, table: pa.Table) -> RawStats:
    path = meta.root / episode.data_file
    columns = {
        key: column
        for key, column in meta.columns.items()
        if not column.is_visual and column.dtype not in STRING_DTYPES
    }
    return {key: column_stats(as_numpy(table, key, column, path)) for key, column in columns.items()}


def _extra_columns(meta: DatasetMeta) -> dict[int, dict[str, Any]]:
    """What else the table of episodes says of each, such as the seed that made it."""
    found: dict[int, dict[str, Any]] = {}
    for file in sorted((meta.root / "meta" / "episodes").glob("*/*.parquet")):
        for row in read_table(file).to_pylist():
            further = {key: value for key, value in row.items() if key not in EPISODE_KEYS and "/" not in key}
            found[row["episode_index"]] = further
    return found


def _write_video(source: _EpisodeReader, episode: EpisodeMeta, key: str, table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    clip = source.clip(episode, key)
    if not encode.begins_with_key_frame(clip, source.meta.fps):
        log.warning("%s has no key frame where episode %d begins, so it is encoded again.", clip.source, episode.index)
        clip = VideoEncoder()(source.frames(episode, key, table), source.meta.fps)
    encode.concat_clips(path, [clip], source.meta.fps)


def _info_v21(source: _EpisodeReader) -> dict[str, Any]:
    info, count = source.info, len(source.meta.episodes)
    features = {key: dict(each) for key, each in info["features"].items()}
    for each in features.values():
        each.pop("fps", None)
    return {
        "codebase_version": "v2.1",
        "robot_type": info.get("robot_type"),
        "total_episodes": count,
        "total_frames": info["total_frames"],
        "total_tasks": len(source.meta.tasks),
        "total_videos": count * len(source.cameras),
        "total_chunks": -(-count // CHUNKS_SIZE),
        "chunks_size": CHUNKS_SIZE,
        "fps": info["fps"],
        "splits": info.get("splits") or {"train": f"0:{count}"},
        "data_path": DATA_V2,
        "video_path": VIDEO_V2 if source.cameras else None,
        "features": features,
        **_extra(info),
    }


def _extra(info: dict[str, Any]) -> dict[str, Any]:
    """What ``info.json`` holds beyond the format, such as the simulator's settings."""
    format_keys = (*LAYOUT_KEYS, "robot_type", "fps", "splits", "features")
    return {key: value for key, value in info.items() if key not in format_keys}
