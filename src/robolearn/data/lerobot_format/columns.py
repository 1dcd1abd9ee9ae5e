"""The numeric columns of the parquet files of a dataset, verified."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from robolearn.data.lerobot_format import validation
from robolearn.data.lerobot_format.meta import ColumnMeta, DatasetMeta, EpisodeMeta, read_table
from robolearn.errors import UserError

STRING_DTYPES = ("string", "large_string")
REQUIRED_COLUMNS = ("episode_index", "frame_index", "timestamp", "index", "task_index")


@dataclass(frozen=True)
class FrameColumns:
    """Frames of the chosen episodes, one after another.

    `columns` hold (n, *shape) by key; episode e of `episodes` occupies rows ``starts[e]`` to
    ``starts[e + 1] - 1``, and its first row is row ``offsets[e]`` of its own parquet file.
    """

    episodes: tuple[EpisodeMeta, ...]
    columns: dict[str, np.ndarray]
    starts: np.ndarray
    offsets: tuple[int, ...]


def read_columns(meta: DatasetMeta, episodes: tuple[EpisodeMeta, ...], tolerance_s: float) -> FrameColumns:
    """Read and verify every numeric column of `episodes`.

    Raises:
        UserError: A file is missing or broken, or holds other frames than its description says.
    """
    wanted = {key: c for key, c in meta.columns.items() if not c.is_visual and c.dtype not in STRING_DTYPES}
    for key in REQUIRED_COLUMNS:
        if key not in wanted:
            raise UserError(
                f"{meta.root / 'meta' / 'info.json'} lists no feature {key!r}, which the format demands.",
                key=str(meta.root / "meta" / "info.json"),
            )
    by_file: dict[str, list[int]] = {}
    for position, episode in enumerate(episodes):
        by_file.setdefault(episode.data_file, []).append(position)

    def read(item: tuple[str, list[int]]) -> dict[int, tuple[int, dict[str, np.ndarray]]]:
        name, positions = item
        return _read_file(meta, wanted, name, {p: episodes[p] for p in positions}, tolerance_s)

    parts: dict[int, tuple[int, dict[str, np.ndarray]]] = {}
    with ThreadPoolExecutor(8) as pool:
        for part in pool.map(read, by_file.items()):
            parts.update(part)
    ordered = [parts[position] for position in range(len(episodes))]
    columns = {key: np.concatenate([values[key] for _, values in ordered]) for key in wanted}
    starts = np.cumsum([0, *(episode.length for episode in episodes)])
    return FrameColumns(episodes, columns, starts, tuple(offset for offset, _ in ordered))


def _read_file(
    meta: DatasetMeta, wanted: dict[str, ColumnMeta], name: str, episodes: dict[int, EpisodeMeta], tolerance_s: float
) -> dict[int, tuple[int, dict[str, np.ndarray]]]:
    """The frames of those `episodes` that lie in one file, with the row where each one begins."""
    path = meta.root / name
    first = next(iter(episodes.values())).index
    table = read_table(path, list(wanted), episode=first)
    values = {key: as_numpy(table, key, column, path) for key, column in wanted.items()}
    owner = values["episode_index"].reshape(-1)
    order = np.argsort(owner, kind="stable")
    parts = {}
    for position, episode in episodes.items():
        low, high = np.searchsorted(owner[order], [episode.index, episode.index + 1])
        rows = order[low:high]
        validation.check_rows(path, episode, rows)
        start = int(rows[0])
        frames = {key: value[start : start + episode.length] for key, value in values.items()}
        validation.check_frames(path, episode, frames, meta, tolerance_s)
        parts[position] = (start, frames)
    return parts


def as_numpy(table: pa.Table, key: str, column: ColumnMeta, path: Path) -> np.ndarray:
    """The values of a numeric feature, (n, *shape), as they are stored.

    Raises:
        UserError: A value is missing, or the shape is not the one that ``info.json`` gives.
    """
    values: Any = table[key].combine_chunks()
    nulls = values.null_count
    while _is_list(values.type):
        values = values.flatten()
        nulls += values.null_count
    if nulls:
        frame = _first_frame(table, lambda row: _has_none(row[key]))
        raise UserError(f"{path} leaves {key!r} empty at {frame}: fetch or write the dataset again.", key=str(path))
    flat = values.to_numpy(zero_copy_only=False)
    if flat.dtype == object:
        raise UserError(
            f"{path} holds {key!r} as {values.type} at {_first_frame(table)}, but meta/info.json says "
            f"{column.dtype}: correct info.json or write the dataset again.",
            key=str(path),
        )
    expected = int(np.prod(column.shape))
    if flat.size != table.num_rows * expected:
        frame = _first_frame(table, lambda row: _size(row[key]) != expected)
        raise UserError(
            f"{path} holds another number of values in {key!r} at {frame} than meta/info.json says, whose shape "
            f"{list(column.shape)} makes {expected}: correct info.json or write the dataset again.",
            key=str(path),
        )
    return flat.reshape(table.num_rows, *column.shape)


def _first_frame(table: pa.Table, is_wrong: Callable[[dict[str, Any]], bool] = lambda row: True) -> str:
    """A description of the first wrong frame; slow, as it reads row by row, so only called on errors."""
    for row in table.to_pylist():
        if is_wrong(row):
            return f"frame {row['frame_index']} of episode {row['episode_index']}"
    return "its first frame"


def _has_none(value: Any) -> bool:
    return any(map(_has_none, value)) if isinstance(value, list) else value is None


def _size(value: Any) -> int:
    return sum(map(_size, value)) if isinstance(value, list) else 1


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
