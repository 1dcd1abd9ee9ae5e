"""Signals that end a run: remembered while a step is at work, delivered once it is saved."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from robolearn.system.workers import TERMINATION_SIGNALS

Handler = Callable[[int, FrameType | None], Any]


class GracefulShutdown:
    """While open, SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 only set `pending`; a second SIGINT ends the process at once.

    Must be opened in the main thread, as Python's signal handlers must.

    Args:
        doing: What is still done after a signal, in words.
        left: What is said when a second SIGINT ends the process.
    """

    def __init__(
        self, doing: str = "finishing this step and saving", left: str = "the run goes on from its last checkpoint"
    ) -> None:
        self._doing, self._left = doing, left
        self.pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "GracefulShutdown":
        self._previous = {number: signal.signal(number, self._remember) for number in TERMINATION_SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def reraise(self) -> None:
        """Hand the remembered signal to the handler that was there before (submitit requeues in its own).

        Returns only when that handler does, which means it wants the run to go on. Where there was none, exits with
        128 plus the signal's number.
        """
        number, self.pending = self.pending, None
        if number is None:
            return
        handler = self._previous[number]
        if callable(handler) and handler is not signal.default_int_handler:
            handler(number, None)
        elif handler is not signal.SIG_IGN:
            raise SystemExit(128 + number)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.pending == signal.SIGINT:
            print(f"\nStopped at once; {self._left}.", file=sys.stderr)
            os._exit(128 + number)
        self.pending = number
        name = signal.Signals(number).name
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\n{name}: {self._doing}{again}.", file=sys.stderr, flush=True)
