"""Rollouts for the online phase: in the training process, or in one of their own beside it."""

import copy
import io
import multiprocessing
import signal
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from robolearn.agent import Agent
from robolearn.envs.factory import EnvFactory
from robolearn.envs.wrappers import VectorEnv
from robolearn.episodes import Episode, RolloutInterrupted
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.rollouts.evaluation import seeded
from robolearn.rollouts.rollout import rollout


@dataclass(frozen=True)
class RolloutResult:
    """Finished episodes.

    Attributes:
        episodes: In the order of their seeds, with observations.
        step: Updates behind the weights that acted.
        seconds: How long it took.
    """

    episodes: list[Episode]
    step: int
    seconds: float


@dataclass(frozen=True)
class VectorEnvFactory:
    """VectorEnv that run episodes side by side; opened at first use, closed by `close`.

    Args:
        env: The simulator.
        batch_size: How many.
        use_async_envs: In a process each.
    """

    env: EnvFactory
    batch_size: int
    use_async_envs: bool

    def run(self, vector: VectorEnv, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> list[Episode]:
        """An episode for each seed; what it does depends on the weights, the seeds and `batch_size` alone."""
        episodes: list[Episode] = []
        with seeded(seeds[0]):
            for first in range(0, len(seeds), self.batch_size):
                part = seeds[first : first + self.batch_size]
                episodes += rollout(vector, agent, part, keep_observations=True, stop=stop)
        return episodes

    def open(self) -> VectorEnv:
        """A vector of the simulators."""
        return self.env.make_vec(self.batch_size, self.use_async_envs)


class RolloutWorker(ABC):
    """Runs the episodes of one rollout at a time."""

    is_async: bool
    """Whether training goes on meanwhile."""
    pending: bool
    """Whether episodes run, or wait to be taken."""

    @abstractmethod
    def start(self, step: int, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> None:
        """Run an episode for each seed with the weights that the agent's policy has now."""

    @abstractmethod
    def get(self, wait: bool, stop: Callable[[], bool]) -> RolloutResult | None:
        """The episodes of the rollout; None while they run, unless `wait`, and when there is none.

        Raises:
            UserError: It failed.
            RolloutInterrupted: `stop` said so while this waited.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the simulators."""


class SyncRolloutWorker(RolloutWorker):
    """Rollouts that are over when `start` returns.

    Args:
        crew: The simulators.
    """

    is_async = False

    def __init__(self, crew: VectorEnvFactory) -> None:
        self.crew = crew
        self._vector: VectorEnv | None = None
        self._collected: RolloutResult | None = None

    @property
    def pending(self) -> bool:  # type: ignore[override]
        """Whether episodes wait to be taken."""
        return self._collected is not None

    def start(self, step: int, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> None:
        """Run the episodes.

        Raises:
            RolloutInterrupted: `stop` said so.
            UserError: A simulator failed.
        """
        self._vector = self._vector or self.crew.open()
        began = time.perf_counter()
        episodes = self.crew.run(self._vector, agent, seeds, stop)
        self._collected = RolloutResult(episodes, step, time.perf_counter() - began)

    def get(self, wait: bool, stop: Callable[[], bool]) -> RolloutResult | None:
        """The episodes, once."""
        collected, self._collected = self._collected, None
        return collected

    def close(self) -> None:
        """Close the simulators."""
        if self._vector is not None:
            self._vector.close()


class AsyncRolloutWorker(RolloutWorker):
    """Rollouts in a process of their own, which gets a copy of the weights and acts on a device of its choice.

    The copy is taken on the stream that trains and sent by a thread, so that training does not wait for it.

    Args:
        crew: The simulators.
        agent: Its policy, normaliser, device and precision are those of the agent that acts there.
    """

    is_async = True

    def __init__(self, crew: VectorEnvFactory, agent: Agent) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # On the CPU, since a handle of GPU memory would have to outlive its reader.
        policy, normalizer = copy.deepcopy(agent.policy).cpu(), copy.deepcopy(agent.normalizer).cpu()
        arguments = (theirs, crew, policy, normalizer, str(agent.device), agent.amp_dtype, list(agent.tasks))
        self._process = context.Process(target=_work, args=arguments, name="rollouts")
        self._process.start()
        theirs.close()
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._sending: Future[None] | None = None
        self.pending = False

    def start(self, step: int, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> None:
        """Hand over the weights and have the episodes run."""
        snapshot = {name: value.detach().clone() for name, value in agent.policy.state_dict().items()}
        ready = torch.cuda.Event() if agent.device.type == "cuda" else None
        if ready:
            ready.record()
        self.pending = True
        self._sending = self._sender.submit(self._send, step, snapshot, list(seeds), ready)

    def _send(self, step: int, snapshot: dict[str, Tensor], seeds: list[int], ready: Any) -> None:
        if ready:
            ready.synchronize()
        content = io.BytesIO()
        torch.save({name: value.cpu() for name, value in snapshot.items()}, content)
        self._pipe.send((step, content.getvalue(), seeds))

    def get(self, wait: bool, stop: Callable[[], bool]) -> RolloutResult | None:
        """The episodes, once they have ended.

        Raises:
            UserError: A simulator failed, or the process died.
            RuntimeError: Something else went wrong there; its traceback is the message.
            RolloutInterrupted: `stop` said so while this waited.
        """
        if not self.pending:
            return None
        try:
            if self._sending and self._sending.done():
                self._sending.result()
            while not self._pipe.poll(0.05 if wait else 0):
                if not wait:
                    return None
                if stop():
                    raise RolloutInterrupted
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise UserError(
                f"The process that collects episodes died (exit code {self._process.exitcode}; too little memory?); "
                "set online.do_rollout_async=false to see it here."
            ) from error
        self.pending = False
        if isinstance(answer, RolloutResult):
            return answer
        kind, text = answer
        raise UserError(text) if kind == "user" else RuntimeError(f"Collecting episodes failed:\n{text}")

    def close(self) -> None:
        """End the process, which closes its simulators when it finds the pipe closed."""
        self._sender.shutdown(wait=True, cancel_futures=True)
        self._pipe.close()
        self._process.join(5)
        self._process.kill()
        self._process.join()


def _work(
    pipe: Connection,
    crew: VectorEnvFactory,
    policy: Policy,
    normalizer: Normalizer,
    device: str,
    amp: torch.dtype | None,
    tasks: Sequence[str],
) -> None:
    """The other process: wait for weights and seeds, answer with episodes."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)  # the trainer decides when this ends
    torch.set_num_threads(1)
    place = torch.device(device)
    agent = Agent(policy.to(place).eval(), normalizer.to(place), place, amp, tasks, explore=True)
    vector = None
    while True:
        try:
            step, weights, seeds = pipe.recv()
            policy.load_state_dict(torch.load(io.BytesIO(weights), map_location=place, weights_only=True))
            began = time.perf_counter()
            vector = vector or crew.open()
            # Nothing comes while episodes run, so that what can be read is the end of the training process.
            episodes = crew.run(vector, agent, seeds, stop=pipe.poll)
            pipe.send(RolloutResult(episodes, step, time.perf_counter() - began))
        except (EOFError, ConnectionError, RolloutInterrupted):  # training is over
            break
        except UserError as error:
            pipe.send(("user", str(error)))
        except Exception:  # told in the process that trains, which ends with it
            pipe.send(("other", traceback.format_exc()))
    if vector is not None:
        vector.close()
