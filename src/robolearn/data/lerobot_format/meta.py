"""The description of a LeRobot dataset: the files under ``meta/`` of format v2.0, v2.1 and v3.0.

Only small files are read here, no frame of data; every version ends as the same `Meta`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robolearn.data.lerobot_format.stats import RawStats, aggregate, parse_stats
from robolearn.errors import UserError, first_line

VERSIONS = ("v2.0", "v2.1", "v3.0")
IMAGE_DTYPES = ("video", "image")


@dataclass(frozen=True)
class ColumnMeta:
    """One feature of ``info.json``: its dtype there, and the shape of one frame (images as (C, H, W))."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def is_visual(self) -> bool:
        """Whether this is a camera, stored as video or as images in the parquet files."""
        return self.dtype in IMAGE_DTYPES


@dataclass(frozen=True)
class VideoLocation:
    """Where an episode's video lies: a file below the root, and the second of that file where it begins."""

    file: str
    start: float


@dataclass(frozen=True)
class EpisodeMeta:
    """One episode: its index, its length in frames, and the files (below the root) that hold it."""

    index: int
    length: int
    data_file: str
    videos: dict[str, VideoLocation]


@dataclass(frozen=True)
class DatasetMeta:
    """A dataset's description. `stats` are those of the whole set, as numbers of double precision.

    `settings` is what `robolearn.types.Spec` calls so, from the key ``settings`` of ``info.json``; LeRobot writes none.
    """

    root: Path
    version: str
    fps: float
    columns: dict[str, ColumnMeta]
    episodes: tuple[EpisodeMeta, ...]
    tasks: dict[int, str]
    stats: RawStats
    stats_file: Path
    settings: dict[str, Any]

    @property
    def cameras(self) -> dict[str, ColumnMeta]:
        """The visual features by key."""
        return {key: column for key, column in self.columns.items() if column.is_visual}


def read_meta(root: Path) -> DatasetMeta:
    """Read the description of the dataset in folder `root`.

    Raises:
        UserError: A file of ``meta/`` is missing, is broken, or contradicts another one.
    """
    path = root / "meta" / "info.json"
    info = read_json(path)
    version = str(_field(info, "codebase_version", path))
    if version not in VERSIONS:
        raise UserError(
            f"{path} has codebase_version {version!r}, but {', '.join(VERSIONS)} are what can be read: "
            "convert the dataset with the conversion script that LeRobot ships, or choose another "
            "dataset.root or dataset.repo_id.",
            key=str(path),
        )
    fps = _field(info, "fps", path)
    if not isinstance(fps, int | float) or fps <= 0:
        raise UserError(f"{path} has fps {fps!r}, which should be a positive number: correct it there.", key=str(path))
    columns = _columns(info, path)
    cameras = [key for key, column in columns.items() if column.dtype == "video"]
    if version == "v3.0":
        episodes = tuple(_episodes_v3(root, info, cameras))
        tasks = _tasks_v3(root / "meta" / "tasks.parquet")
    else:
        episodes = tuple(_episodes_v2(root, info, cameras))
        tasks = _tasks_v2(root / "meta" / "tasks.jsonl")
    if version == "v3.0":
        episodes = _committed(info, episodes, path)
    _check_totals(info, episodes, path)
    stats, stats_file = _stats(root, version)
    settings = info.get("settings")
    settings = settings if isinstance(settings, dict) else {}
    return DatasetMeta(root, version, float(fps), columns, episodes, tasks, stats, stats_file, settings)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: The file is missing or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch or write the dataset again.", key=str(path)) from None
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}): fetch or write the dataset again.", key=str(path)
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object: fetch or write the dataset again.", key=str(path))
    return value


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line.

    Raises:
        UserError: The file is missing or holds something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch or write the dataset again.", key=str(path)) from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch or write the dataset again.", key=str(path)) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is not JSON ({error}): fetch or write the dataset again.", key=str(path)
            ) from None
        if not isinstance(value, dict):
            raise UserError(
                f"{path}, line {number} should be a JSON object: fetch or write the dataset again.", key=str(path)
            )
        yield value


def read_table(path: Path, columns: list[str] | None = None, episode: int | None = None) -> pa.Table:
    """A parquet file's columns.

    Raises:
        UserError: The file is missing or broken, or lacks one of `columns`; `episode`, where given, is named.
    """
    where = f"{path}" if episode is None else f"{path} (episode {episode})"
    try:
        if columns is not None:
            missing = [key for key in columns if key not in pq.read_schema(path).names]
            if missing:
                raise UserError(
                    f"{where} lacks the column {missing[0]!r}, which meta/info.json lists: "
                    "fetch or write the dataset again.",
                    key=str(path),
                )
        return pq.ParquetFile(path).read(columns=columns)
    except FileNotFoundError:
        raise UserError(f"{where} is missing: fetch or write the dataset again.", key=str(path)) from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{where} cannot be read as parquet ({first_line(error)}): fetch the dataset again.", key=str(path)
        ) from None


def _field(record: dict[str, Any], key: str, path: Path) -> Any:
    if key not in record:
        raise UserError(
            f"{path} lacks {key!r}, which the dataset format demands: fetch the dataset again.", key=str(path)
        )
    return record[key]


def _count(record: dict[str, Any], key: str, path: Path) -> int:
    value = _field(record, key, path)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(
            f"{path} has {key} {value!r}, which should be an integer that is not negative: correct it there.",
            key=str(path),
        )
    return value


def _columns(info: dict[str, Any], path: Path) -> dict[str, ColumnMeta]:
    features = _field(info, "features", path)
    if not isinstance(features, dict):
        raise UserError(f"{path} has features that are no object: fetch or write the dataset again.", key=str(path))
    columns = {}
    for key, feature in features.items():
        try:
            dtype, shape = str(feature["dtype"]), tuple(int(size) for size in feature["shape"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path} gives no usable dtype and shape for {key!r}: each feature needs both.", key=str(path)
            ) from None
        if dtype in IMAGE_DTYPES:
            shape = _channel_first(shape, feature.get("names"))
            if len(shape) != 3 or shape[0] not in (1, 3):
                raise UserError(
                    f"{path} gives the camera {key!r} the shape {feature['shape']}: height, width and "
                    "1 or 3 channels are what can be read.",
                    key=str(path),
                )
        columns[key] = ColumnMeta(dtype, shape)
    if "action" not in columns:
        raise UserError(f"{path} lists no feature 'action': nothing can be learned from this dataset.", key=str(path))
    if not any(key.startswith("observation.") for key in columns):
        raise UserError(
            f"{path} lists no feature 'observation.*': nothing can be learned from this dataset.", key=str(path)
        )
    return columns


def _channel_first(shape: tuple[int, ...], names: Any) -> tuple[int, ...]:
    if len(shape) != 3:
        return shape
    if isinstance(names, list) and len(names) == 3:
        channels_last = str(names[2]).startswith("channel")
    else:
        channels_last = shape[0] not in (1, 3)
    return (shape[2], shape[0], shape[1]) if channels_last else shape


def _path(info: dict[str, Any], key: str, path: Path, **parts: Any) -> str:
    template = _field(info, key, path)
    try:
        return str(template).format(**parts)
    except (KeyError, IndexError, ValueError):
        raise UserError(
            f"{path} has {key} {template!r}, which holds a placeholder that this format version does not know.",
            key=str(path),
        ) from None


def _episodes_v2(root: Path, info: dict[str, Any], cameras: list[str]) -> Iterator[EpisodeMeta]:
    path, lines = root / "meta" / "info.json", root / "meta" / "episodes.jsonl"
    size = max(_count(info, "chunks_size", path), 1)
    for record in read_lines(lines):
        index, length = _count(record, "episode_index", lines), _count(record, "length", lines)
        parts = {"episode_chunk": index // size, "episode_index": index}
        videos = {key: VideoLocation(_path(info, "video_path", path, video_key=key, **parts), 0.0) for key in cameras}
        yield EpisodeMeta(index, length, _path(info, "data_path", path, **parts), videos)


def _episodes_v3(root: Path, info: dict[str, Any], cameras: list[str]) -> Iterator[EpisodeMeta]:
    path, folder = root / "meta" / "info.json", root / "meta" / "episodes"
    files = sorted(folder.glob("*/*.parquet"))
    if not files:
        raise UserError(f"{folder} holds no parquet file: fetch or write the dataset again.", key=str(folder))
    parts = ("chunk_index", "file_index")
    wanted = ["episode_index", "length", *(f"data/{part}" for part in parts)]
    for key in cameras:
        wanted += [f"videos/{key}/{part}" for part in (*parts, "from_timestamp")]
    for file in files:
        for row in read_table(file, wanted).to_pylist():
            empty = [key for key, value in row.items() if value is None]
            if empty:
                raise UserError(
                    f"{file} leaves {empty[0]!r} empty in a row: fetch or write the dataset again.", key=str(file)
                )
            location = {part: row[f"data/{part}"] for part in parts}
            videos = {}
            for key in cameras:
                video = {part: row[f"videos/{key}/{part}"] for part in parts}
                name = _path(info, "video_path", path, video_key=key, **video)
                videos[key] = VideoLocation(name, float(row[f"videos/{key}/from_timestamp"]))
            data_file = _path(info, "data_path", path, **location)
            yield EpisodeMeta(_count(row, "episode_index", file), _count(row, "length", file), data_file, videos)


def _committed(info: dict[str, Any], episodes: tuple[EpisodeMeta, ...], path: Path) -> tuple[EpisodeMeta, ...]:
    """The episodes that count: info.json is written last, so a writer that was killed may have listed more."""
    counted = episodes[: _count(info, "total_episodes", path)]
    frames = sum(episode.length for episode in counted)
    return counted if frames == _count(info, "total_frames", path) else episodes


def _check_totals(info: dict[str, Any], episodes: tuple[EpisodeMeta, ...], path: Path) -> None:
    for position, episode in enumerate(episodes):
        if episode.index != position:
            raise UserError(
                f"{path.parent} lists episode {episode.index} where episode {position} belongs: "
                "episodes should be numbered from 0 without a gap, so write the dataset again.",
                key=str(path.parent),
            )
        if episode.length == 0:
            raise UserError(
                f"{path.parent} gives episode {episode.index} no frame: write the dataset again.", key=str(path.parent)
            )
    for key, found in (("total_episodes", len(episodes)), ("total_frames", sum(e.length for e in episodes))):
        recorded = _count(info, key, path)
        if recorded != found:
            raise UserError(
                f"{path} has {key} {recorded}, but the episodes listed beside it make {found}: "
                "fetch or write the dataset again.",
                key=str(path),
            )
    if not episodes:
        raise UserError(f"{path} describes a dataset without episodes: choose another one.", key=str(path))


def _tasks_v2(path: Path) -> dict[int, str]:
    return {_count(row, "task_index", path): str(_field(row, "task", path)) for row in read_lines(path)}


def _tasks_v3(path: Path) -> dict[int, str]:
    table = read_table(path)
    string_columns = [field.name for field in table.schema if pa.types.is_string(field.type) or _is_large(field.type)]
    if "task_index" not in table.schema.names or not string_columns:
        raise UserError(
            f"{path} should hold task_index and the tasks as strings: fetch the dataset again.", key=str(path)
        )
    name = "task" if "task" in string_columns else string_columns[0]
    return dict(sorted(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True)))


def _is_large(kind: pa.DataType) -> bool:
    return pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _stats(root: Path, version: str) -> tuple[RawStats, Path]:
    if version == "v2.1":
        path = root / "meta" / "episodes_stats.jsonl"
        rows = [parse_stats(_field(row, "stats", path), path) for row in read_lines(path)]
        return aggregate(rows, path), path
    path = root / "meta" / "stats.json"
    return parse_stats(read_json(path), path), path


def select_episodes(meta: DatasetMeta, episodes: list[int] | None) -> tuple[EpisodeMeta, ...]:
    """The episodes of the key ``dataset.episodes``, in the order given; all of them for None.

    Raises:
        UserError: An index is out of range or comes twice, or the list is empty.
    """
    if episodes is None:
        return meta.episodes
    total = len(meta.episodes)
    if not episodes:
        raise UserError(
            "dataset.episodes is empty: name at least one episode, or null for all of them.", key="dataset.episodes"
        )
    for index in episodes:
        if not 0 <= index < total:
            raise UserError(
                f"dataset.episodes names episode {index}, but {meta.root} has episodes 0 to {total - 1}.",
                key="dataset.episodes",
            )
    if len(set(episodes)) != len(episodes):
        twice = next(index for index in episodes if episodes.count(index) > 1)
        raise UserError(f"dataset.episodes names episode {twice} twice: name each one once.", key="dataset.episodes")
    return tuple(meta.episodes[index] for index in episodes)
