"""Datasets in LeRobot's format v3.0, laid out as its release 0.4 does, and valid at every moment while they grow.

Files only ever grow by being replaced: each new version holds the old one's content at the same positions, and
``meta/info.json``, which says how many episodes count, is replaced last. So whatever kills the process, a reader finds
the episodes of one commit or of the next, and `DatasetWriter` cuts off what is beyond when it opens the folder again.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from robolearn.data.lerobot_format.episode_stats import column_stats
from robolearn.data.lerobot_format.recorder import EpisodeRecord, InfoFeature, feature
from robolearn.data.lerobot_format.stats import RawStats, aggregate
from robolearn.data.video import encode as video
from robolearn.data.video.encode import Clip
from robolearn.errors import UserError
from robolearn.system.files import atomic_file, write_json

CHUNK_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{CHUNK_FILE}.parquet"
VIDEO_PATH = "videos/{video_key}/" + f"{CHUNK_FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{CHUNK_FILE}.parquet"
CHUNKS_SIZE = 1000
MEGABYTE = 1 << 20
DATA_MB, VIDEO_MB = 100, 200

# LeRobot's loader compares times as float32, whose steps pass its tolerance of 1e-4 s beyond 1024 s.
MAX_VIDEO_S = 1000

INDICES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Columns that the writer adds."""

ARROW_TYPES: dict[str, pa.DataType] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int64": pa.int64(),
    "int32": pa.int32(),
    "uint8": pa.uint8(),
    "bool": pa.bool_(),
    "string": pa.string(),
}

INDEX_FEATURES = {key: feature("float32" if key == "timestamp" else "int64", [1]) for key in INDICES}


class DatasetWriter:
    """Adds episodes to a dataset; nothing is on disk before `commit`.

    Args:
        root: The dataset's folder; one that holds a dataset of the same features is continued.
        fps: Frames a second.
        features: As in ``info.json``, without the columns that the writer adds.
        robot_type: As in ``info.json``.
        extra: Further keys of ``info.json``, which readers that do not know them pass over.

    Raises:
        UserError: The folder holds a dataset of other features or frame rate.
    """

    def __init__(
        self,
        root: Path,
        fps: float,
        features: Mapping[str, InfoFeature],
        robot_type: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.root, self.fps = root, fps
        self.features = {**features, **INDEX_FEATURES}
        self.cameras = [key for key, each in features.items() if each["dtype"] == "video"]
        self.rows: list[dict[str, Any]] = []
        self.tasks: list[str] = []
        self._pending: list[EpisodeRecord] = []
        self._info: dict[str, Any] = {
            "codebase_version": "v3.0",
            "robot_type": robot_type,
            "total_episodes": 0,
            "total_frames": 0,
            "total_tasks": 0,
            "chunks_size": CHUNKS_SIZE,
            "data_files_size_in_mb": DATA_MB,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": int(fps) if float(fps).is_integer() else fps,
            "splits": {},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH if self.cameras else None,
            "features": self.features,
            **(extra or {}),
        }
        if (root / "meta" / "info.json").is_file():
            self._open()

    @property
    def num_episodes(self) -> int:
        """Episodes, those that wait for `commit` included."""
        return len(self.rows) + len(self._pending)

    @property
    def num_frames(self) -> int:
        """Frames on disk."""
        return int(self.rows[-1]["dataset_to_index"]) if self.rows else 0

    def add(self, record: EpisodeRecord) -> None:
        """Take an episode, to be written by the next `commit`."""
        self._pending.append(record)

    def commit(self) -> float:
        """Write what was added; until this returns, readers find the dataset as it was before.

        Returns:
            The seconds it took.

        Raises:
            OSError: The disk is full or failed; the dataset is as it was, and what was added still waits.
        """
        start = time.perf_counter()
        if not self._pending:
            return 0.0
        tasks = list(dict.fromkeys([*self.tasks, *(task for record in self._pending for task in _tasks(record))]))
        rows, tables = list(self.rows), []
        for record in self._pending:
            table = self._table(record, len(rows), rows[-1]["dataset_to_index"] if rows else 0, tasks)
            rows.append(self._row(record, table, len(rows)))
            tables.append(table)
        for camera in self.cameras:
            self._assign_video_files(camera, rows)
        self._assign_data_files(rows, tables)
        self._assign_episode_files(rows)
        for camera in self.cameras:
            self._write_videos(camera, rows)
        self._write_data(rows, tables)
        self._write_meta(rows, tasks)
        self.rows, self.tasks, self._pending = rows, tasks, []
        return time.perf_counter() - start

    # Converting an episode

    def _table(self, record: EpisodeRecord, episode_index: int, first: int, tasks: list[str]) -> pa.Table:
        given: Any = record.columns
        length = len(given["action"])
        index_of = {task: index for index, task in enumerate(tasks)}
        times = np.arange(length) / self.fps if record.times is None else record.times
        created = {
            "timestamp": times.astype(np.float32),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, episode_index),
            "index": np.arange(first, first + length),
            "task_index": np.array([index_of[task] for task in _tasks(record, length)]),
        }
        columns = {}
        for key, each in self.features.items():
            if each["dtype"] == "video":
                continue
            values = created[key] if key in created else given[key]
            columns[key] = values if isinstance(values, pa.ChunkedArray | pa.Array) else _arrow(values, each)
        return pa.table(columns)

    def _row(self, record: EpisodeRecord, table: pa.Table, index: int) -> dict[str, Any]:
        first = int(table["index"][0].as_py())
        stats = {**record.stats}
        for key, each in self.features.items():
            if each["dtype"] not in ("video", "image", "string"):
                stats[key] = column_stats(as_array(table[key], each))
        flat = {f"stats/{key}/{name}": value.tolist() for key, of in stats.items() for name, value in of.items()}
        return {
            "episode_index": index,
            "tasks": list(dict.fromkeys(_tasks(record))),
            "length": table.num_rows,
            "dataset_from_index": first,
            "dataset_to_index": first + table.num_rows,
            **record.extra,
            **flat,
        }

    # Assigning episodes to files

    def _assign_data_files(self, rows: list[dict[str, Any]], tables: list[pa.Table]) -> None:
        known = len(self.rows)
        location, size = _last_file(rows[:known], "data"), 0
        if known:
            size = self._path(DATA_PATH, location).stat().st_size
        for row, table in zip(rows[known:], tables, strict=True):
            if size and size + table.nbytes > DATA_MB * MEGABYTE:
                location, size = _next_file(location), 0
            row["data/chunk_index"], row["data/file_index"] = location
            size += table.nbytes

    def _assign_video_files(self, camera: str, rows: list[dict[str, Any]]) -> None:
        known, prefix = len(self.rows), f"videos/{camera}"
        location, size, frames = _last_file(rows[:known], prefix), 0, 0
        if known:
            size = self._path(VIDEO_PATH, location, video_key=camera).stat().st_size
            frames = round(rows[known - 1][f"{prefix}/to_timestamp"] * self.fps)
        for row, record in zip(rows[known:], self._pending, strict=True):
            clip = record.clips[camera]
            too_long = frames + clip.length > MAX_VIDEO_S * self.fps
            if frames and (too_long or size + clip.size > VIDEO_MB * MEGABYTE):
                location, size, frames = _next_file(location), 0, 0
            row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"] = location
            row[f"{prefix}/from_timestamp"] = frames / self.fps
            row[f"{prefix}/to_timestamp"] = (frames + clip.length) / self.fps
            frames, size = frames + clip.length, size + clip.size

    def _assign_episode_files(self, rows: list[dict[str, Any]]) -> None:
        known = len(self.rows)
        location = _last_file(rows[:known], "meta/episodes")
        if known and self._path(EPISODES_PATH, location).stat().st_size > DATA_MB * MEGABYTE:
            location = _next_file(location)
        for row in rows[known:]:
            row["meta/episodes/chunk_index"], row["meta/episodes/file_index"] = location

    def _path(self, template: str, location: tuple[int, int], **parts: str) -> Path:
        return self.root / template.format(chunk_index=location[0], file_index=location[1], **parts)

    # Writing, in the order that keeps the dataset valid for readers

    def _write_videos(self, camera: str, rows: list[dict[str, Any]]) -> None:
        known, prefix = len(self.rows), f"videos/{camera}"
        by_file: dict[tuple[int, int], list[Clip]] = {}
        for row, record in zip(rows[known:], self._pending, strict=True):
            by_file.setdefault(_location(row, prefix), []).append(record.clips[camera])
        for location, added in by_file.items():
            path = self._path(VIDEO_PATH, location, video_key=camera)
            old = [row for row in rows[:known] if _location(row, prefix) == location]
            if old:
                added = [Clip(path, round(old[-1][f"{prefix}/to_timestamp"] * self.fps)), *added]
            with atomic_file(path) as temporary:
                video.concat_clips(temporary, added, self.fps)
        if not self.features[camera].get("info"):
            self.features[camera]["info"] = video.video_info(self._pending[0].clips[camera], self.fps)

    def _write_data(self, rows: list[dict[str, Any]], tables: list[pa.Table]) -> None:
        known = len(self.rows)
        by_file: dict[tuple[int, int], list[pa.Table]] = {}
        for row, table in zip(rows[known:], tables, strict=True):
            by_file.setdefault(_location(row, "data"), []).append(table)
        for location, added in by_file.items():
            path = self._path(DATA_PATH, location)
            kept = sum(row["length"] for row in rows[:known] if _location(row, "data") == location)
            with atomic_file(path) as temporary, pq.ParquetWriter(temporary, added[0].schema) as file:
                if kept:
                    _copy_rows(path, kept, file)
                for table in added:  # a row group an episode, so that one can be read alone
                    file.write_table(table)

    def _write_meta(self, rows: list[dict[str, Any]], tasks: list[str]) -> None:
        with atomic_file(self.root / "meta" / "tasks.parquet") as temporary:
            pq.write_table(_tasks_table(tasks), temporary)
        write_json(self.root / "meta" / "stats.json", _plain(total_stats(rows)))
        files = dict.fromkeys(_location(row, "meta/episodes") for row in rows[len(self.rows) :])
        for location in files:
            of_file = [row for row in rows if _location(row, "meta/episodes") == location]
            with atomic_file(self._path(EPISODES_PATH, location)) as temporary:
                pq.write_table(pa.Table.from_pylist(of_file), temporary)
        self._write_info(rows, tasks)

    def _write_info(self, rows: list[dict[str, Any]], tasks: list[str]) -> None:
        self._info |= {
            "total_episodes": len(rows),
            "total_frames": int(rows[-1]["dataset_to_index"]),
            "total_tasks": len(tasks),
            "splits": {"train": f"0:{len(rows)}"},
        }
        write_json(self.root / "meta" / "info.json", self._info)

    # Opening an existing dataset

    def _open(self) -> None:
        path = self.root / "meta" / "info.json"
        info = json.loads(path.read_text())
        for key in ("codebase_version", "fps"):
            if info.get(key) != self._info[key]:
                raise UserError(
                    f"{self.root} holds a dataset of {key} {info.get(key)}, not {self._info[key]}",
                    key=str(self.root),
                    fix="give another folder",
                )
        found = {key: {**each, "info": None} for key, each in info["features"].items()}
        if found != {key: {**each, "info": None} for key, each in self.features.items()}:
            other = sorted(key for key in found.keys() | self.features.keys() if _differs(key, found, self.features))
            raise UserError(
                f"{self.root} holds a dataset of other features ({', '.join(other)}); give another folder.",
                key=str(self.root),
            )
        self.features, self._info = info["features"], info
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        # What is beyond was written by a process that was killed before it came to info.json.
        self.rows = rows[: info["total_episodes"]]
        tasks = pq.read_table(self.root / "meta" / "tasks.parquet")
        self.tasks = tasks["__index_level_0__"].to_pylist()[: info["total_tasks"]]
        if len(rows) > len(self.rows):
            self._drop_leftovers(files)

    def _drop_leftovers(self, files: list[Path]) -> None:
        kept = {self._path(EPISODES_PATH, _location(row, "meta/episodes")) for row in self.rows}
        for file in files:
            if file not in kept:
                file.unlink()
        last = _location(self.rows[-1], "meta/episodes")
        with atomic_file(self._path(EPISODES_PATH, last)) as temporary:
            of_file = [row for row in self.rows if _location(row, "meta/episodes") == last]
            pq.write_table(pa.Table.from_pylist(of_file), temporary)
        write_json(self.root / "meta" / "stats.json", _plain(total_stats(self.rows)))


def total_stats(rows: list[dict[str, Any]]) -> RawStats:
    """The statistics of a whole set from the rows of its table of episodes."""
    episodes: list[RawStats] = []
    for row in rows:
        stats: RawStats = {}
        for name, value in row.items():
            if name.startswith("stats/"):
                key, _, kind = name.removeprefix("stats/").rpartition("/")
                stats.setdefault(key, {})[kind] = np.asarray(value)
        episodes.append(stats)
    return aggregate(episodes, Path("meta/episodes"))


def _tasks_table(tasks: list[str]) -> pa.Table:
    """The tasks as LeRobot writes them: a pandas frame whose index is the text."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "__index_level_0__": tasks})
    number = {"field_name": "task_index", "name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    text = {"field_name": "__index_level_0__", "name": None, "pandas_type": "unicode", "numpy_type": "object"}
    described = {
        "index_columns": ["__index_level_0__"],
        "column_indexes": [{**text, "field_name": None, "metadata": {"encoding": "UTF-8"}}],
        "columns": [{**number, "metadata": None}, {**text, "metadata": None}],
        "pandas_version": "2.3.3",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(described)})


def as_array(column: pa.ChunkedArray, of: InfoFeature) -> np.ndarray:
    """A column of numbers as (n, *shape)."""
    values: Any = column.combine_chunks()
    while pa.types.is_nested(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(len(column), *of["shape"])


def _arrow(values: np.ndarray, of: InfoFeature) -> pa.Array:
    kind, shape = ARROW_TYPES[of["dtype"]], tuple(of["shape"])
    flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind)
    if shape == (1,):
        return flat
    for size in reversed(shape):
        flat = pa.FixedSizeListArray.from_arrays(flat, size)
    return flat


def _copy_rows(path: Path, count: int, file: pq.ParquetWriter) -> None:
    """Copy the first `count` rows, a row group at a time; what is beyond was never committed."""
    with pq.ParquetFile(path) as source:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group).slice(0, count)
            count -= table.num_rows
            file.write_table(table)
            if not count:
                return
    raise UserError(
        f"{path} lacks {count} frames that meta/episodes lists: the dataset can't be continued.", key=str(path)
    )


def _tasks(record: EpisodeRecord, length: int = 1) -> Sequence[str]:
    """The task of every frame."""
    return [record.task] * length if isinstance(record.task, str) else record.task


def _differs(key: str, one: Mapping[str, InfoFeature], other: Mapping[str, InfoFeature]) -> bool:
    return {**one.get(key, {}), "info": None} != {**other.get(key, {}), "info": None}


def _location(row: Mapping[str, Any], prefix: str) -> tuple[int, int]:
    return row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"]


def _last_file(rows: Sequence[Mapping[str, Any]], prefix: str) -> tuple[int, int]:
    return _location(rows[-1], prefix) if rows else (0, 0)


def _next_file(location: tuple[int, int]) -> tuple[int, int]:
    chunk, file = location
    return (chunk + 1, 0) if file == CHUNKS_SIZE - 1 else (chunk, file + 1)


def _plain(stats: RawStats) -> dict[str, Any]:
    return {key: {name: value.tolist() for name, value in of.items()} for key, of in stats.items()}
