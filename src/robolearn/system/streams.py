"""Standard streams that may be closed, or break at any time, while nobody who prints has to know."""

import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from robolearn.errors import UserError


class TolerantStream:
    """A text stream that falls silent where it can't be written.

    The reader of a pipe may leave, a terminal may hang up, the disk with the log may be full: no reason to end a run
    of days. All else is the stream's own.

    Attributes:
        error: Why it fell silent; None while it is written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write, or do nothing."""
        if self.error is None:
            try:
                return self._stream.write(text)
            except (OSError, ValueError) as error:  # a ValueError: somebody closed it
                self._silence(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write, or do nothing."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered, or do nothing."""
        if self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._silence(error)

    def _silence(self, error: OSError | ValueError) -> None:
        self.error = error
        # What is still buffered, and what libraries print on their own, goes nowhere instead of failing later.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """While open standard output and standard error fall silent where they can't be written."""
    before = sys.stdout, sys.stderr
    tolerate_broken_streams()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def tolerate_broken_streams() -> None:
    """From now on standard output and standard error fall silent where they can't be written."""
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = TolerantStream(sys.stdout), TolerantStream(sys.stderr)  # type: ignore[assignment]


def check_printed() -> None:
    """See that what was printed arrived, for commands that do nothing else; a reader that left has seen enough.

    Raises:
        UserError: It did not.
    """
    sys.stdout.flush()
    error = getattr(sys.stdout, "error", None)
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        raise UserError(f"The output could not be printed ({error.strerror}).", key="standard output")


def open_closed_descriptors() -> None:
    """Open the null device in place of standard streams that were closed when this process started.

    Otherwise the next files that are opened, a dataset's or a checkpoint's, take their numbers, and whatever prints to
    "standard error" writes into them.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
