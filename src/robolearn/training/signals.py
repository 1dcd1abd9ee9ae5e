"""Signals that end a run: remembered while a step is at work, delivered once it is saved."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from robolearn.system.termination import TERMINATION_SIGNALS, OrderlyExit

Handler = Callable[[int, FrameType | None], Any]


class GracefulShutdown:
    """While open, termination signals only set `pending`; a second SIGINT ends the process at once.

    Signals that are ignored, as nohup has it, stay so. Must be opened in the main thread, as Python's handlers must.

    Args:
        message: What is still done after a signal.
        resume_hint: What is said when a second SIGINT ends the process.
        at_once: Called before it does.
    """

    def __init__(
        self,
        message: str = "finishing this step and saving",
        resume_hint: str = "the run resumes from its last checkpoint",
        at_once: Callable[[], None] = lambda: None,
    ) -> None:
        self._message, self._resume_hint, self._at_once = message, resume_hint, at_once
        self.pending: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "GracefulShutdown":
        taken = [signum for signum in TERMINATION_SIGNALS if signal.getsignal(signum) is not signal.SIG_IGN]
        self._previous = {signum: signal.signal(signum, self._remember) for signum in taken}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def reraise(self) -> None:
        """Hand the remembered signal to the handler that was there before (submitit requeues in its own).

        Returns only when that handler does, which means that it lets the run continue. Where there was none, exits
        with 128 plus the signal's number.
        """
        signum, self.pending = self.pending, None
        if signum is None:
            return
        handler = self._previous.get(signum)  # none where another process got the signal, and it is ignored here
        if callable(handler) and handler is not signal.default_int_handler:
            try:
                handler(signum, None)
            except SystemExit as error:
                raise OrderlyExit(error.code) from error
        else:
            raise SystemExit(128 + signum)

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.pending == signal.SIGINT:
            print(f"\nStopped at once; {self._resume_hint}.", file=sys.stderr)
            self._at_once()
            os._exit(128 + signum)
        self.pending = signum
        name = signal.Signals(signum).name
        again = "; press Ctrl-C again to stop at once" if signum == signal.SIGINT else ""
        print(f"\n{name}: {self._message}{again}.", file=sys.stderr, flush=True)
