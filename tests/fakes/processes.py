"""Commands that tests run: each has a limit of time, and whatever it started ends with it."""

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

Command = str | Sequence[str | Path]


def run(command: Command, *, seconds: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, its output captured as text; a string is a line of the shell.

    Args:
        command: As `subprocess.Popen` takes it.
        seconds: What a slow and busy machine may need.
        options: Of `subprocess.Popen`.

    Raises:
        AssertionError: It took longer; with what it had printed, and where its Python code was.
    """
    # Files, not pipes: a process that was left behind would keep whoever reads those waiting.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with started(command, **{"stdout": out, "stderr": err} | options) as process:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGABRT)  # PYTHONFAULTHANDLER has the stacks printed
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                raise AssertionError(f"{command} did not end within {seconds} s.\n{_read(out)}{_read(err)}") from None
        return subprocess.CompletedProcess(command, process.returncode, _read(out), _read(err))


@contextlib.contextmanager
def started(command: Command, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the block; at the block's end it is killed, with all processes that it started."""
    options = {"stdin": subprocess.DEVNULL, "shell": isinstance(command, str)} | options
    with subprocess.Popen(command, text=True, start_new_session=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _read(file: Any) -> str:
    file.seek(0)
    return file.read()
