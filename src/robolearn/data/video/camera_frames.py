"""The frames of a camera of a dataset, from video or parquet files into the cache of decoded frames."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from robolearn.data.lerobot_format.columns import FrameColumns
from robolearn.data.lerobot_format.meta import DatasetMeta, read_table
from robolearn.data.video import decode, frame_cache
from robolearn.errors import UserError


def load_camera_frames(
    meta: DatasetMeta,
    table: FrameColumns,
    key: str,
    folder: Path,
    backend: str,
    tolerance_s: float,
    rebuild: bool = False,
) -> frame_cache.FrameCacheEntry:
    """The decoded frames of camera `key`, one for each row of `table`, decoded now if the cache does not hold them.

    Args:
        meta: The dataset.
        table: Its frames.
        key: The camera.
        folder: The cache's folder.
        backend: ``av`` or ``torchcodec``.
        tolerance_s: How far a video frame may lie from its frame's time.
        rebuild: Decode in any case.

    Raises:
        UserError: A file cannot be decoded, or holds other frames than meta/ says; or no room on disk.
    """
    shape = meta.columns[key].shape
    full = (int(table.starts[-1]), *shape)
    requests = []
    if meta.columns[key].dtype == "image":
        backend = "parquet"
        names = list(dict.fromkeys(episode.data_file for episode in table.episodes))
        files = [meta.root / name for name in names]
        file_index = {name: position for position, name in enumerate(names)}
        pairs = zip(table.episodes, table.offsets, strict=True)
        parts = [np.array([file_index[e.data_file], e.length, offset]) for e, offset in pairs]
    else:
        requests = _requests(meta, table, key)
        files = [wanted.file for wanted in requests]
        # A stricter tolerance may refuse what a laxer one has let in, so it is a part of the name.
        parts = [tolerance_s, *(part for wanted in requests for part in (wanted.times, wanted.rows))]
    name = frame_cache.digest(files, key, backend, full, *parts, memory=folder / "digests")

    def fill(writer: frame_cache.FrameCacheWriter) -> None:
        with _progress(writer, full[0], key) as write:
            decode_camera(meta, table, key, backend, tolerance_s, write)

    return frame_cache.get_entry(folder / "frames" / name, full, key, fill, rebuild)


def decode_camera(
    meta: DatasetMeta, table: FrameColumns, key: str, backend: str, tolerance_s: float, write: decode.WriteFrame
) -> None:
    """Decode the frame of camera `key` for each row of `table`; `write` is called from several threads.

    Raises:
        UserError: A file cannot be decoded, or holds other frames than meta/ says.
    """
    shape = meta.columns[key].shape
    if meta.columns[key].dtype == "image":
        _decode_parquet(meta, table, key, write)
    elif backend == "torchcodec":
        decode.decode_torchcodec(_requests(meta, table, key), shape, tolerance_s, write)
    else:
        decode.decode(_requests(meta, table, key), shape, tolerance_s, write)


@contextmanager
def _progress(writer: frame_cache.FrameCacheWriter, total: int, key: str) -> Iterator[decode.WriteFrame]:
    guard = threading.Lock()
    with tqdm(total=total, desc=f"decoding {key}", unit="frame", disable=None) as bar:

        def write(row: int, image: np.ndarray) -> None:
            writer(row, image)
            with guard:
                bar.update()

        yield write


def _requests(meta: DatasetMeta, table: FrameColumns, key: str) -> list[decode.FrameRequest]:
    by_file: dict[str, list[int]] = {}
    for position, episode in enumerate(table.episodes):
        by_file.setdefault(episode.videos[key].file, []).append(position)
    seconds = table.columns["timestamp"].reshape(-1).astype(np.float64)
    requests = []
    for name, positions in by_file.items():
        lengths = [table.episodes[p].length for p in positions]
        rows = np.concatenate([np.arange(table.starts[p], table.starts[p + 1]) for p in positions])
        start = np.repeat([table.episodes[p].videos[key].start for p in positions], lengths)
        owner = np.repeat([table.episodes[p].index for p in positions], lengths)
        frames = np.concatenate([np.arange(length) for length in lengths])
        requests.append(decode.FrameRequest(meta.root / name, start + seconds[rows], rows, owner, frames))
    return requests


def _decode_parquet(meta: DatasetMeta, table: FrameColumns, key: str, write: decode.WriteFrame) -> None:
    by_file: dict[str, list[int]] = {}
    for position, episode in enumerate(table.episodes):
        by_file.setdefault(episode.data_file, []).append(position)
    for name, positions in by_file.items():
        path = meta.root / name
        column = read_table(path, [key], episode=table.episodes[positions[0]].index)[key]

        for position in positions:
            episode, first = table.episodes[position], table.offsets[position]
            values = column.slice(first, episode.length).to_pylist()
            shape, start = meta.columns[key].shape, int(table.starts[position])

            def write_frame(item: tuple[int, object], path=path, episode=episode, shape=shape, start=start) -> None:
                frame, value = item
                where = f"episode {episode.index}, frame {frame}"
                write(start + frame, _decode_image(value, shape, meta.root, path, where))

            with ThreadPoolExecutor(decode.cpu_count()) as pool:
                for _ in pool.map(write_frame, enumerate(values)):
                    pass


def _decode_image(value: object, shape: tuple[int, ...], root: Path, file: Path, where: str) -> np.ndarray:
    """A stored image, encoded bytes or the path of a file, as uint8 (C, H, W)."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
    try:
        if data is None and path:
            data = (root / path).read_bytes()
        if not isinstance(data, bytes):
            raise UserError(f"{file} ({where}) holds no image: fetch or write the dataset again.", key=str(file))
        with Image.open(io.BytesIO(data)) as encoded:
            image = np.asarray(encoded.convert("RGB" if shape[0] == 3 else "L"))
    except UnidentifiedImageError:
        raise UserError(
            f"{file} ({where}) holds no image that can be read: fetch or write the dataset again.", key=str(file)
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} ({where}) holds a broken image ({error}): fetch or write the dataset again.", key=str(file)
        ) from None
    image = image.reshape(*image.shape[:2], shape[0]).transpose(2, 0, 1)
    if image.shape != shape:
        raise UserError(
            f"{file} ({where}) holds an image of {image.shape[1]} x {image.shape[2]}, but meta/info.json says "
            f"{shape[1]} x {shape[2]}: correct info.json or write the dataset again.",
            key=str(file),
        )
    return np.ascontiguousarray(image)
