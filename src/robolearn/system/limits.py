"""What a machine refuses: room, memory, open files, permissions; each becomes a sentence on what it was about."""

import errno
import logging
import re
import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robolearn.errors import UserError, first_line, one_line
from robolearn.system.files import FULL

log = logging.getLogger(__name__)

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
OPEN_FILES = (errno.EMFILE, errno.ENFILE)
IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST)
BROKEN = (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENAMETOOLONG, errno.ENOLCK, errno.EREMOTEIO)

NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "failed to map segment", "bad_alloc", "out of memory")
NO_THREAD = ("can't start new thread", "resource temporarily unavailable")
ADDRESS_SPACE = 4 * 10**9
"""Bytes of addresses that PyTorch and a small run take; most of them are never filled."""
LESS_MEMORY = "free some, raise the limit (ulimit -v), or lower batch_size, eval.batch_size or num_workers"


def check_address_space() -> None:
    """Refuse a limit of memory in which torch can't even be loaded: its libraries would abort without a word.

    Raises:
        UserError: The limit is too low.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        raise UserError(
            f"The limit of memory, {limit / 1e9:.2g} GB (ulimit -v {limit // 1024}), is too low to load PyTorch",
            key="ulimit -v",
            fix=f"raise it to {ADDRESS_SPACE / 1e9:.0f} GB or more",
        )


@contextmanager
def limits_as_user_errors(folder: Path | None = None) -> Iterator[None]:
    """Turn what the machine refuses into `UserError`; other exceptions pass unchanged.

    Args:
        folder: What an error that names no file is about.

    Raises:
        UserError: The disk is full, a file can't be written or read, or memory, threads or open files ran out.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError, ImportError, ValueError) as error:
        # logging wraps what keeps it from opening a file.
        cause = error.__cause__ if isinstance(error, ValueError) else None
        told = user_error(cause if isinstance(cause, OSError) else error, folder)
        if told is None:
            raise
        log.debug("%s", traceback.format_exc())
        raise told from error


def user_error(error: Exception, folder: Path | None = None) -> UserError | None:
    """The sentence about an exception that the machine caused; None for any other."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(words in text for words in NO_MEMORY):
        return UserError(f"There is not enough memory ({first_line(error)[:200]})", key="memory", fix=LESS_MEMORY)
    if isinstance(error, BlockingIOError | RuntimeError | ImportError) and any(words in text for words in NO_THREAD):
        return UserError(
            f"No further thread or process can be started ({first_line(error)})",
            key="ulimit -u",
            fix="raise the limits (ulimit -u, ulimit -v), or lower num_workers",
        )
    return _file_error(error, folder) if isinstance(error, OSError) else None


def _file_error(error: OSError, folder: Path | None) -> UserError | None:
    if isinstance(error, ConnectionError | TimeoutError):
        return None
    # Files are written beside their place, by another name.
    path = re.sub(r"(^|/)\.([^/]+)\.(\d+|tmp)$", r"\1\2", str(error.filename or folder or "A file"))
    why = error.strerror or one_line(error)
    if "usable temporary directory" in str(error):
        return UserError(
            f"There is no folder for temporary files ({why})", key="TMPDIR", fix="set TMPDIR to one that can be written"
        )
    if error.errno in FULL:
        return UserError(
            f"The disk is full, or a limit of size is reached: {path} could not be written ({why})",
            key=path,
            fix="make room, or raise the limit (ulimit -f), and start again",
        )
    if error.errno in FORBIDDEN:
        return UserError(
            f"{path} can't be read or written ({why})", key=path, fix="give another folder, or change its permissions"
        )
    if error.errno in OPEN_FILES:
        return UserError(
            f"Too many files are open ({why}: {path})",
            key="ulimit -n",
            fix="raise the limit (ulimit -n 4096), or lower num_workers or eval.batch_size",
        )
    if error.errno in (*IN_THE_WAY, *BROKEN):
        return UserError(f"{path} can't be used ({why})", key=path, fix="remove or rename it, or give another folder")
    return None
