"""Atomic writes: a file or folder is complete or absent, also after a crash or a kill."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robolearn.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


def _beside(path: Path, suffix: int | str) -> Path:
    """A hidden name in the folder of a path.

    Raises:
        IsADirectoryError: The path has no name of its own, as ``.`` and the root.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.with_name(f".{path.name}.{suffix}")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: readers see the old or the new content, never a part."""
    write_bytes(path, text.encode("utf-8", errors="surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content, never a part."""
    temporary = _beside(path, os.getpid())
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: readers see the old or the new content, never a part."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file that is renamed to `path` once it is complete and synced to disk; until then the old content stays.

    Only one process may write to `path` at a time. What a killed process left behind is overwritten.

    Yields:
        The temporary file to write, beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, target: str) -> None:
    """Point a symbolic link at another target atomically."""
    temporary = _beside(path, os.getpid())
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A folder that is renamed to `path` once all its files are synced to disk.

    Yields:
        The temporary folder to fill, beside `path`; removed if the block raises.

    Raises:
        UserError: The disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, os.getpid())
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        _sync(path.parent)
    except Exception as error:
        if is_full(error, temporary):
            raise _full_disk(path) from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_full_as_user_error(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into a `UserError`; other errors pass unchanged.

    Raises:
        UserError: The disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise _full_disk(path) from error
        raise


def _full_disk(path: Path) -> UserError:
    message = f"The disk is full: {path} could not be written"
    return UserError(message, key=str(path), fix="make room and start again")


def is_full(error: Exception, folder: Path) -> bool:
    """Whether a write into a folder failed because the disk or the quota is full."""
    try:
        if isinstance(error, OSError):
            raise error
        # Errors of safetensors and torch carry no errno, so a probe file shows whether the disk is full.
        (folder / ".probe").write_bytes(bytes(1 << 20))
    except OSError as found:
        return found.errno in FULL
    finally:
        (folder / ".probe").unlink(missing_ok=True)
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
