"""Files that are either whole or not there, whatever happens while they are written."""

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


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    write_bytes(path, text.encode("utf-8", errors="surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
    """Write JSON so that a reader sees the old or the new content, never a part."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file to fill, which takes its name only once it is on disk; until then its old content stays.

    Only one process may write to `path` at a time; what one that was killed has left is overwritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def link(path: Path, target: str) -> None:
    """Point a symbolic link at another target in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only once all its files are on disk.

    Yields:
        A temporary folder beside `path`. When the block ends well it is synced and renamed to `path`; otherwise it
        is removed.

    Raises:
        UserError: The disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
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
    """Make a sentence of an error that comes from a full disk; other errors pass.

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
    return UserError(f"The disk is full: {path} could not be written; make room and start again.")


def is_full(error: Exception, folder: Path) -> bool:
    """Whether a write into a folder failed for want of room."""
    try:
        if isinstance(error, OSError):
            raise error
        # Safetensors and torch raise errors of their own that do not tell, so the disk is asked again.
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
