"""Simulators side by side: in one thread beside the caller's, or in a process each."""

import atexit
import select
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import vector
from gymnasium.vector.async_vector_env import _async_worker

from robolearn.envs.time_limit import POLL_S, CallThread, TimeLimit, Wait
from robolearn.errors import UserError
from robolearn.system.workers import init_worker_process, light_start_method

Stop = Callable[[], bool]


def never() -> bool:
    """Never stop."""
    return False


class SyncVectorEnv(vector.SyncVectorEnv):
    """Environments in this process, stepped one after the other.

    Args:
        env_fns: Open the environments.
        name: Of the simulator, for messages.
        limit: How long a call may take.
        stop: Whether a call should be left before.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        name: str = "",
        limit: TimeLimit | None = None,
        stop: Stop = never,
    ) -> None:
        self._call = CallThread(name, limit or TimeLimit(), stop)
        opening = partial(super().__init__, env_fns, autoreset_mode=vector.AutoresetMode.DISABLED)
        try:
            self._call(opening, lambda: "opening")
        except BaseException:
            self._call.close()
            raise
        self._at_exit = partial(_close_left_open, weakref.ref(self))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset all environments."""
        try:
            return self._call(partial(super().reset, seed=seed, options=options), self._doing)
        finally:
            self._close_first()

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Step all environments."""
        # gymnasium asserts that no finished environment is stepped; ours are frozen then.
        self._autoreset_envs[:] = False
        return self._call(partial(super().step, actions), self._doing)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of all environments."""
        try:
            return self._call(partial(super().call, name, *args, **kwargs), self._doing)
        finally:
            self._close_first()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments, unless one is stuck."""
        atexit.unregister(self._at_exit)
        if not self._call.is_stuck:
            self._call(partial(super().close_extras, **kwargs), lambda: "closing")
        self._call.close()

    def _close_first(self) -> None:
        """At the end of the process be closed by the thread that has the OpenGL contexts, before others free them."""
        atexit.unregister(self._at_exit)
        atexit.register(self._at_exit)

    def _doing(self) -> str:
        doing = (getattr(env, "doing", None) for env in self.envs)
        return next((words for words in doing if words), "a call")


def _close_left_open(reference: weakref.ref[SyncVectorEnv]) -> None:
    if (env := reference()) is not None:
        env.close()


class AsyncVectorEnv(vector.AsyncVectorEnv):
    """Environments in a worker process each, which are killed when the vector is closed.

    Args:
        env_fns: Open the environments.
        preload: Modules that the workers' fork server imports once.
        name: Of the simulator, for messages.
        limit: How long a call may take.
        stop: Whether a call should be left before.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        preload: Sequence[str] = (),
        name: str = "",
        limit: TimeLimit | None = None,
        stop: Stop = never,
    ) -> None:
        self._name, self._limit, self._stop = name, limit or TimeLimit(), stop
        self._seeds: Sequence[int | None] = []
        self._steps = 0
        context = light_start_method([__name__, *preload])
        super().__init__(env_fns, context=context, worker=_worker, autoreset_mode=vector.AutoresetMode.DISABLED)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset all environments."""
        self._seeds, self._steps = (seed if isinstance(seed, list) else [seed] * self.num_envs), 0
        self.reset_async(seed, options)
        self._wait("reset")
        return self.reset_wait()

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Step all environments."""
        self._steps += 1
        self.step_async(actions)
        self._wait(f"step {self._steps}")
        return self.step_wait()

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of all environments."""
        self.call_async(name, *args, **kwargs)
        self._wait("render" if name == "frame" else name)
        return self.call_wait()

    def _check_spaces(self) -> None:
        # The first answer of a worker, which comes when it has opened its environment.
        self.call_async("idle")
        self._wait("opening")
        self.call_wait()
        super()._check_spaces()

    def _wait(self, what: str) -> None:
        """Wait until every worker has answered."""
        poller, waiting = select.poll(), {pipe.fileno(): index for index, pipe in enumerate(self.parent_pipes)}
        for descriptor in waiting:
            poller.register(descriptor, select.POLLIN)
        wait = Wait(self._limit, self._stop)
        while waiting:
            answered = poller.poll(POLL_S * 1000)
            for descriptor, _ in answered:
                poller.unregister(descriptor)
                del waiting[descriptor]
            if not answered:
                wait.check(self._name, lambda: self._doing(what, min(waiting.values())))

    def _doing(self, what: str, index: int) -> str:
        return f"{what} of the episode with seed {self._seeds[index]}" if self._seeds else what

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        try:
            super()._raise_if_errors(successes)
        except UserError as error:
            # gymnasium raises ``type(error)(error)``, which has neither the key nor the fix of what it wraps.
            raise error.args[0] from None

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Kill the processes; they hold nothing that is worth an orderly end."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        for pipe in self.parent_pipes:
            if pipe is not None:
                pipe.close()


VectorEnv = SyncVectorEnv | AsyncVectorEnv


def make_vector_env(
    env_fns: Sequence[Callable[[], gym.Env]],
    use_async: bool,
    preload: Sequence[str],
    name: str,
    limit: TimeLimit | None = None,
    stop: Stop = never,
) -> VectorEnv:
    """A vector environment.

    Args:
        env_fns: Open the environments.
        use_async: Give each environment a process of its own.
        preload: Modules that these processes import once.
        name: Of the simulator, for messages.
        limit: How long a call may take.
        stop: Whether a call should be left before.

    Raises:
        UserError: An environment can't be opened, or its process died.
    """
    if not use_async:
        return SyncVectorEnv(env_fns, name, limit, stop)
    try:
        return AsyncVectorEnv(env_fns, preload, name, limit, stop)
    except (EOFError, ConnectionError) as error:
        raise UserError(
            "A simulator's process ended while it started (its own message is above; too little memory, or a script "
            'without `if __name__ == "__main__":`, are common causes)',
            key="eval.use_async_envs",
            fix="set eval.use_async_envs=false to see it in this process",
        ) from error


def _worker(*arguments: Any) -> None:
    init_worker_process()
    _async_worker(*arguments)
