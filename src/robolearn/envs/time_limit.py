"""Calls of simulators that need not return: each has a limit of time, and a signal does not wait for it.

Nothing here imports torch, so that the worker processes of simulators start fast and stay small.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, NoReturn, TypeVar

from robolearn.episodes import RolloutInterrupted
from robolearn.errors import UserError

T = TypeVar("T")

POLL_S = 0.25
"""How often a caller that waits asks whether it should stop."""
LEAVE_S = 2.0
"""How long a call that was asked to stop may take to return, so that its simulator can be closed in order."""


@dataclass(frozen=True)
class TimeLimit:
    """How long a step or a reset of a simulator may take.

    Args:
        seconds: The limit.
        key: Configuration key that sets it.
    """

    seconds: float = 300.0
    key: str = "eval.timeout"


class Wait:
    """The wait for one call: `ended` is asked again and again until the call returned.

    Args:
        limit: How long it may take.
        stop: Whether it should be left before.
    """

    def __init__(self, limit: TimeLimit, stop: Callable[[], bool]) -> None:
        self._limit, self._stop = limit, stop
        self._end, self._leave = time.monotonic() + limit.seconds, float("inf")

    def check(self, simulator: str, doing: Callable[[], str]) -> None:
        """Leave where it is time to.

        Args:
            simulator: Its name.
            doing: What it does.

        Raises:
            RolloutInterrupted: It was asked to stop.
            UserError: The limit is reached.
        """
        now = time.monotonic()
        if self._leave == float("inf") and self._stop():
            self._leave = now + LEAVE_S
        if now >= self._leave:
            raise RolloutInterrupted
        if now >= self._end:
            raise UserError(
                f"The simulator {simulator} did not return from {doing()} within {self._limit.key}="
                f"{self._limit.seconds:g} seconds",
                key=self._limit.key,
                fix=f"see what it waits for, or give a larger {self._limit.key}",
            )


class CallThread:
    """Makes calls in a thread of its own, one after another, and abandons it where a call does not return.

    A simulator that hangs, in Python or in C, can't be interrupted where it runs. The thread that waits for it can go
    on, and save what there is. A simulator is opened, stepped, rendered and closed by one thread, as OpenGL demands.

    Args:
        simulator: Its name.
        limit: How long a call may take.
        stop: Whether a call should be left before.
    """

    def __init__(self, simulator: str, limit: TimeLimit, stop: Callable[[], bool] = lambda: False) -> None:
        self.simulator, self.limit, self.stop = simulator, limit, stop
        self.is_stuck = False
        self._calls: SimpleQueue[Callable[[], Any] | None] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=f"simulator {simulator}", daemon=True)
        _simulating.add(self._thread)
        _forbid_exit()
        self._thread.start()

    def __call__(self, function: Callable[[], T], doing: Callable[[], str]) -> T:
        """The result of a call.

        Args:
            function: Called without arguments.
            doing: What it does, in words, asked where it does not return.

        Raises:
            RolloutInterrupted: `stop` said so meanwhile.
            UserError: The limit is reached.
        """
        if self.is_stuck:
            raise RuntimeError(f"the simulator {self.simulator} is stuck in an earlier call")
        self._calls.put(function)
        try:
            value, error = self._wait(doing)
        except (UserError, RolloutInterrupted):
            self._abandon()
            raise
        except BaseException:  # of a signal's handler, which comes in the middle of a call that may well return
            try:
                self._answers.get(timeout=LEAVE_S)
            except BaseException:
                self._abandon()
            raise
        if error is not None:
            raise error
        return value

    def _wait(self, doing: Callable[[], str]) -> tuple[Any, BaseException | None]:
        wait = Wait(self.limit, self.stop)
        while True:
            try:
                return self._answers.get(timeout=POLL_S)
            except Empty:
                wait.check(self.simulator, doing)

    def _abandon(self) -> None:
        self.is_stuck = True
        _abandoned.append(self._thread)

    def close(self) -> None:
        """End the thread, unless it is stuck: then it ends with the process."""
        self._calls.put(None)

    def _serve(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                answer = function(), None
            except BaseException as error:  # the caller's, whatever it is
                answer = None, error
            self._answers.put(answer)
            del function, answer


@cache
def _forbid_exit() -> None:
    """Have ``os._exit`` raise SystemExit in these threads: a simulator would end the run, with the status of success.

    A process that such a thread forks may still end so.
    """
    leave, owner = os._exit, os.getpid()

    def exit_elsewhere(status: int) -> NoReturn:
        if threading.current_thread() in _simulating and os.getpid() == owner:
            raise SystemExit(status)
        leave(status)

    os._exit = exit_elsewhere


_simulating: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_abandoned: list[threading.Thread] = []


def any_stuck() -> bool:
    """Whether a call that was given up still runs: then this process can't end in order."""
    return any(thread.is_alive() for thread in _abandoned)
