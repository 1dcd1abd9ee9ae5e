"""Vector environments that are never reset by themselves, in this process or in worker processes.

Imports no torch, so that the worker processes start fast and stay small.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import vector
from gymnasium.vector.async_vector_env import _async_worker

from robolearn.errors import UserError
from robolearn.system.workers import init_worker_process, light_start_method


class SyncVectorEnv(vector.SyncVectorEnv):
    """Environments in this process, stepped one after the other."""

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]]) -> None:
        super().__init__(env_fns, autoreset_mode=vector.AutoresetMode.DISABLED)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Step all environments."""
        # gymnasium asserts that no finished environment is stepped; ours are frozen then.
        self._autoreset_envs[:] = False
        return super().step(actions)


class AsyncVectorEnv(vector.AsyncVectorEnv):
    """Environments in a worker process each, which are killed when the vector is closed.

    Args:
        env_fns: Open the environments.
        preload: Modules that the workers' fork server imports once.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], preload: Sequence[str] = ()) -> None:
        context = light_start_method([__name__, *preload])
        super().__init__(env_fns, context=context, worker=_worker, autoreset_mode=vector.AutoresetMode.DISABLED)

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


def make_vector_env(env_fns: Sequence[Callable[[], gym.Env]], use_async: bool, preload: Sequence[str]) -> VectorEnv:
    """A vector environment.

    Args:
        env_fns: Open the environments.
        use_async: Give each environment a process of its own.
        preload: Modules that these processes import once.

    Raises:
        UserError: An environment can't be opened, or its process died.
    """
    if not use_async:
        return SyncVectorEnv(env_fns)
    try:
        return AsyncVectorEnv(env_fns, preload)
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
