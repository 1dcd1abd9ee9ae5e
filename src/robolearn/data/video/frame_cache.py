"""Decoded frames on disk: lossless, complete or absent, shared by every process of the machine.

An entry is a folder that holds the images of one camera, uint8 (N, C, H, W) without any header, and a JSON
file with their shape and checksum. Its name is a digest of the dataset's own files and of what was
chosen from them, so that an entry never goes stale: other content makes another name.
"""

import contextlib
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from filelock import FileLock, Timeout
from torch import Tensor

from robolearn.errors import UserError
from robolearn.system.files import atomic_dir, write_json

log = logging.getLogger(__name__)

LAYOUT = 1  # Counts up when entries are written in another way, so that old ones are no longer found.
CHUNK = 1 << 26
SETTLED_S = 10.0  # Age of a file from which its modification times reveal every change.
SLACK = 1 << 24  # Bytes to be left on the disk, for the file system's own records.


def digest(files: Iterable[Path], *parts: object, memory: Path | None = None) -> str:
    """32 hex digits (XXH3, 128 bit) that depend on the bytes of `files`, in order, and on `parts`.

    A file is read again only if `memory`, a folder, does not know it as it is now.
    """
    paths = list(files)
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda path: _known_digest(path, memory) if memory else _file_digest(path), paths))
    total = xxhash.xxh3_128(f"layout {LAYOUT}".encode())
    for part in (*sums, *parts):
        data = part.tobytes() if isinstance(part, np.ndarray) else str(part).encode()
        total.update(f"{len(data)}:".encode())
        total.update(data)
    return total.hexdigest()


def _known_digest(path: Path, memory: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return _file_digest(path)
    # Whoever writes into a file changes its ctime, which no tool can set back.
    state = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    note = memory / f"{xxhash.xxh3_64(str(path.resolve()).encode()).hexdigest()}.json"
    try:
        known = json.loads(note.read_text())
        if known["state"] == state:
            return known["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = _file_digest(path)
    # A clock ticks coarsely: what was just written may be written once more without any change of its times.
    if time.time() - stat.st_ctime > SETTLED_S and path.stat().st_ctime_ns == stat.st_ctime_ns:
        with contextlib.suppress(OSError):
            memory.mkdir(parents=True, exist_ok=True)
            write_json(note, {"state": state, "digest": found})
    return found


def _file_digest(path: Path) -> str:
    total = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                total.update(chunk)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): fetch or write the dataset again.", key=str(path)
        ) from None
    return total.hexdigest()


class FrameCacheWriter:
    """Writes frames into the file of an entry, at any row and from any thread."""

    def __init__(self, path: Path, shape: tuple[int, ...], camera: str):
        self.size = int(np.prod(shape[1:]))
        self.written = np.zeros(shape[0], dtype=bool)
        self._total = shape[0] * self.size
        self._folder = path.parent.parent
        self._camera = camera
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)

    def __call__(self, row: int, image: np.ndarray) -> None:
        """Write a contiguous uint8 image (C, H, W). Raises UserError where the disk is full."""
        data, offset = image.data.cast("B"), row * self.size
        try:
            while data:
                # Not through a memory map: there a full disk would end the process by a signal.
                count = os.pwrite(self._descriptor, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise disk_full(self._folder, self._total, self._camera) from None
            raise
        self.written[row] = True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def disk_full(folder: Path, size: int, camera: str) -> UserError:
    """The error for a disk without room for `size` bytes in `folder`."""
    return UserError(
        f"The decoded frames of {camera} need {gigabytes(size)} in {folder}, where the disk has not that much "
        "room: free some, or name another folder by dataset.cache_dir or ROBOLEARN_CACHE.",
        key="dataset.cache_dir",
    )


def gigabytes(size: int) -> str:
    """A number of bytes for people, in GB of 10^9 bytes, or MB where it is small."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class FrameCacheEntry:
    """A complete entry of the cache: images uint8 of `shape` (N, C, H, W) in `file`."""

    file: Path
    shape: tuple[int, ...]
    checksum: str

    def mapped(self) -> Tensor:
        """The images as a view of the file: read on access and kept by the page cache."""
        count = int(np.prod(self.shape))
        return torch.from_file(str(self.file), shared=False, size=count, dtype=torch.uint8).view(self.shape)

    def copy_to(self, device: torch.device) -> Tensor | None:
        """The images in memory of `device`; None where the file's checksum is not the recorded one."""
        size, total, offset = int(np.prod(self.shape)), xxhash.xxh3_128(), 0
        on_host = device.type == "cpu"
        # NumPy asks the system for huge pages, which halves the time to fill so much memory.
        buffer = np.empty(size if on_host else min(CHUNK, size), dtype=np.uint8)
        target = torch.from_numpy(buffer) if on_host else torch.empty(size, dtype=torch.uint8, device=device)
        with self.file.open("rb", buffering=0) as file:
            while offset < size:
                chunk = buffer[offset : offset + CHUNK] if on_host else buffer[: size - offset]
                count = file.readinto(chunk.data)
                if not count:
                    return None
                total.update(chunk[:count].data)
                if not on_host:
                    target[offset : offset + count].copy_(torch.from_numpy(chunk[:count]))
                offset += count
        return target.view(self.shape) if total.hexdigest() == self.checksum else None


def open_entry(folder: Path) -> FrameCacheEntry | None:
    """The entry in `folder`; None where there is none, or where it is not complete."""
    try:
        record = json.loads((folder / "frames.json").read_text())
        entry = FrameCacheEntry(folder / "frames.u8", tuple(record["shape"]), record["xxh3_128"])
        size = entry.file.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if size == int(np.prod(entry.shape)) else None


def get_entry(
    folder: Path, shape: tuple[int, ...], camera: str, fill: Callable[[FrameCacheWriter], None], rebuild: bool = False
) -> FrameCacheEntry:
    """The entry in `folder`, written by `fill` where it is not there; one process writes, others wait for it.

    Args:
        folder: The entry's folder.
        shape: (N, C, H, W).
        camera: The camera's key, for messages.
        fill: Writes every row.
        rebuild: Write again in any case, because the content proved wrong.

    Raises:
        UserError: The cache's folder cannot be written, or the disk is too small.
    """
    entry = None if rebuild else open_entry(folder)
    if entry and entry.shape == shape:
        return entry
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        _acquire(lock, folder)
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror or error}): name another folder for decoded "
            "frames by dataset.cache_dir or ROBOLEARN_CACHE.",
            key=str(folder.parent),
        ) from None
    try:
        entry = None if rebuild else open_entry(folder)
        if entry and entry.shape == shape:
            return entry
        return _write_entry(folder, shape, camera, fill)
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("Waiting for another process, which decodes the same frames into %s.", folder)
        lock.acquire()


def _write_entry(
    folder: Path, shape: tuple[int, ...], camera: str, fill: Callable[[FrameCacheWriter], None]
) -> FrameCacheEntry:
    if folder.exists():
        log.warning("%s is damaged: its frames are decoded again.", folder)
    for left in folder.parent.glob(f".{folder.name}.*"):  # of processes that were killed: we hold their lock
        shutil.rmtree(left, ignore_errors=True)
    size = int(np.prod(shape))
    if shutil.disk_usage(folder.parent).free < size + SLACK:
        raise disk_full(folder.parent, size, camera)
    with atomic_dir(folder) as temporary:
        writer = FrameCacheWriter(temporary / "frames.u8", shape, camera)
        try:
            fill(writer)
        finally:
            writer.close()
        if not writer.written.all():
            raise RuntimeError(f"{int((~writer.written).sum())} frames of {camera} were not decoded")
        checksum = _file_digest(temporary / "frames.u8")
        write_json(
            temporary / "frames.json",
            {"camera": camera, "dtype": "uint8", "shape": list(shape), "xxh3_128": checksum},
        )
    return FrameCacheEntry(folder / "frames.u8", shape, checksum)
