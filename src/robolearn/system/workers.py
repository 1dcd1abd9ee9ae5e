"""Worker processes, which answer requests over a pipe and never outlive the process that started them.

Imports no torch, so that the processes of simulators start fast and stay small.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from robolearn.errors import UserError

Request = TypeVar("Request", contravariant=True)
Answer = TypeVar("Answer", covariant=True)

TERMINATION_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""What a terminal or a cluster sends to every process of a job; the main process handles them."""


class WorkerTask(Protocol[Request, Answer]):
    """What a worker does; pickled into its process."""

    def open(self, stop: Callable[[], bool]) -> AbstractContextManager[Callable[[Request], Answer]]:
        """Set up in the worker process; entered at the first request, left when the worker is closed.

        Args:
            stop: Whether the worker is being closed, to be asked during long requests.

        Returns:
            A context whose value answers a request.
        """
        ...


class Worker(Generic[Request, Answer]):
    """A process that runs one task.

    Args:
        task: What it does.
        name: Of the process, for messages.
        key: Configuration key that a `UserError` about its death names.
        fix: What the user can do about its death.
        preload: Modules that a fork server imports once for all workers; None starts a fresh interpreter instead, as
            a task that uses torch or starts processes needs it.
    """

    def __init__(
        self, task: WorkerTask[Request, Answer], name: str, key: str, fix: str, preload: Sequence[str] | None = None
    ) -> None:
        self._name, self._key, self._fix = name, key, fix
        context: Any = multiprocessing.get_context("spawn" if preload is None else light_start_method(preload))
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, task), name=name, daemon=preload is not None)
        self._process.start()
        theirs.close()

    def send(self, request: Request) -> None:
        """Give it a request; blocks while a large one is read.

        Raises:
            UserError: The process died.
        """
        try:
            self._pipe.send(request)
        except OSError as error:
            raise self._died() from error

    def poll(self, timeout: float) -> bool:
        """Whether `receive` has something to return or to raise, waiting at most `timeout` seconds for it."""
        return self._pipe.poll(timeout)

    def receive(self) -> Answer:
        """The answer to the oldest request, waiting for it.

        Raises:
            UserError: The task raised it, or the process died.
            RuntimeError: The task raised another exception; its traceback is the message.
        """
        try:
            answer, error = self._pipe.recv()
        except (EOFError, OSError) as lost:
            raise self._died() from lost
        if isinstance(error, UserError):
            raise error
        if error is not None:
            raise RuntimeError(f"The {self._name} process failed:\n{error}")
        return answer

    def close(self, timeout: float = 5.0) -> None:
        """End the process: its task is left when it finds the pipe closed, or killed after `timeout` seconds."""
        self._pipe.close()
        self._process.join(timeout)
        self._process.kill()
        self._process.join()

    def _died(self) -> UserError:
        self._process.join(20)
        message = f"The {self._name} process died (exit code {self._process.exitcode}; too little memory?)"
        return UserError(message, key=self._key, fix=self._fix)


def wait_any(workers: Sequence[Worker[Any, Any]], timeout: float) -> list[Worker[Any, Any]]:
    """Those of the workers that can be received from, waiting at most `timeout` seconds for the first."""
    by_pipe = {worker._pipe: worker for worker in workers}
    ready = wait(list(by_pipe), timeout)
    return [worker for pipe, worker in by_pipe.items() if pipe in ready]


def light_start_method(preload: Sequence[str]) -> str:
    """The start method of workers without torch; a fork server imports `preload` once.

    Plain fork would copy a process with CUDA and running threads, spawn would import everything in each process.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["__main__", __name__, *preload])
    return "forkserver"


def init_worker_process() -> None:
    """In a worker process: ignore termination signals, and exit when the parent process ends, even if killed."""
    for number in TERMINATION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, name="exit with parent", daemon=True).start()


def limit_threads() -> None:
    """In a worker process: one thread for OpenCV, which would otherwise start one per core in every process."""
    if multiprocessing.parent_process() is not None and "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _serve(pipe: Connection, task: WorkerTask[Any, Any]) -> None:
    init_worker_process()
    answer = None
    with ExitStack() as stack, suppress(EOFError, OSError):  # both: the pipe was closed
        while True:
            request = pipe.recv()
            try:
                # The next request is sent after this one's reply: what can be read meanwhile is the end of the pipe.
                answer = answer or stack.enter_context(task.open(pipe.poll))
                reply: tuple[Any, UserError | str | None] = answer(request), None
            except UserError as error:
                reply = None, error
            except Exception:
                reply = None, traceback.format_exc()
            pipe.send(reply)
