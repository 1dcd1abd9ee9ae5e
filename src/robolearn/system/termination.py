"""The signals with which a terminal or a cluster ends a job, and what a process makes of them."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What a terminal or a cluster sends to every process of a job; the main process handles them."""


def ignore_termination() -> None:
    """Leave the end of this process to its parent."""
    for number in TERMINATION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class OrderlyExit(SystemExit):
    """Raised where a signal's earlier handler ends the process once all is saved, whatever its status says."""


class Termination:
    """Raises SystemExit with 128 plus the number of a signal, at once, or once the block ends where it is deferred."""

    def __init__(self) -> None:
        self.pending: int | None = None
        self._deferred = False

    def defer(self) -> None:
        """From here to the end of the block nothing is interrupted."""
        self._deferred = True

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Python's handler."""
        if not self._deferred:
            raise SystemExit(128 + number)
        self.pending = number


@contextmanager
def exit_on_termination() -> Iterator[Termination]:
    """While open, a signal that would kill this process raises SystemExit, so that what is open is closed in order.

    A signal that somebody else handles, as submitit does, or that is ignored, as nohup has it, stays what it is.
    """
    termination = Termination()
    in_main_thread = threading.current_thread() is threading.main_thread()
    taken: list[Any] = [n for n in TERMINATION_SIGNALS if in_main_thread and signal.getsignal(n) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, termination.handle)
        yield termination
    finally:
        termination.defer()
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
    if termination.pending is not None:
        raise SystemExit(128 + termination.pending)
