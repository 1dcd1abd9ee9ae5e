"""How commands end: with one sentence where something was wrong, and without a traceback where a user wants no more."""

import argparse
import functools
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TextIO

from robolearn.errors import UserError, printable, refuse_arguments
from robolearn.system.limits import limits_as_user_errors
from robolearn.system.streams import tolerant_streams


class _LogRecord(logging.LogRecord):
    """A line of the log, which may quote a stranger's dataset or checkpoint."""

    def getMessage(self) -> str:  # noqa: N802
        return printable(super().getMessage())


# Here, because every process of a command imports this, also the jobs of a launcher.
logging.setLogRecordFactory(_LogRecord)


def entry_point(main: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """A command whose mistakes are one sentence on stderr and status 2, and Ctrl-C one word and status 130."""

    @functools.wraps(main)
    def command(argv: Sequence[str] | None = None) -> None:
        try:
            with tolerant_streams(), _logging_without_tracebacks():
                try:
                    with limits_as_user_errors():
                        main(argv)
                except UserError as error:
                    exit_with(error)
                except KeyboardInterrupt:
                    _say("\nStopped.")
                    raise SystemExit(130) from None
        finally:
            _leave_stuck_simulators()

    return command


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence as all others, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: Always.
        """
        refuse_arguments(message)


def _leave_stuck_simulators() -> None:
    """End at once where a simulator still hangs: the interpreter's own end would wait for it, or crash in it."""
    module = sys.modules.get("robolearn.envs.time_limit")
    if module is None or not module.any_stuck():
        return
    error = sys.exception()
    if error is not None and not isinstance(error, SystemExit):
        traceback.print_exception(error)
        os._exit(1)
    code = getattr(error, "code", 0)
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


@contextmanager
def _logging_without_tracebacks() -> Iterator[None]:
    """While open a log file that can't be written, on a full disk say, is no reason to print tracebacks."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before


def exit_with(error: UserError) -> NoReturn:
    """Print the sentence and end with status 2."""
    _say(str(error))
    raise SystemExit(2)


def say(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print what may quote a stranger's files, without their control characters."""
    print(printable(text), end=end, file=file)


def _say(text: str) -> None:
    """Print to stderr; of processes that train together the main one does."""
    if os.environ.get("RANK", "0") == "0":
        say(text, file=sys.stderr)
