"""Rollouts for the online phase: in the training process, or in one of their own beside it."""

import copy
import io
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from robolearn.agent import Agent, AgentFactory
from robolearn.envs.factory import EnvFactory
from robolearn.envs.vector import VectorEnv
from robolearn.episodes import Episode, RolloutInterrupted
from robolearn.policies.base import Policy
from robolearn.rng import isolated_rng
from robolearn.rollouts.rollout import rollout
from robolearn.system.workers import Worker


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
    """Opens vector environments and runs episodes in them.

    Args:
        env: The simulator.
        batch_size: Number of environments side by side.
        use_async_envs: Give each environment a process of its own.
    """

    env: EnvFactory
    batch_size: int
    use_async_envs: bool

    def open(self) -> VectorEnv:
        """A vector environment."""
        return self.env.make_vec(self.batch_size, self.use_async_envs)

    def run(self, vector: VectorEnv, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> list[Episode]:
        """An episode for each seed; they depend on the weights, the seeds and `batch_size` alone."""
        episodes: list[Episode] = []
        with isolated_rng(seeds[0]):
            for first in range(0, len(seeds), self.batch_size):
                part = seeds[first : first + self.batch_size]
                episodes += rollout(vector, agent, part, keep_observations=True, stop=stop)
        return episodes


class RolloutWorker(ABC):
    """Runs the episodes of one rollout at a time."""

    is_async: bool
    """Whether training continues meanwhile."""
    pending: bool
    """Whether a rollout runs, or its result was not yet returned by `get`."""

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
        """Close the environments."""


class SyncRolloutWorker(RolloutWorker):
    """Rollouts in this process, complete when `start` returns.

    Args:
        factory: Of the vector environment, opened at the first rollout.
    """

    is_async = False

    def __init__(self, factory: VectorEnvFactory) -> None:
        self.factory = factory
        self._vector: VectorEnv | None = None
        self._result: RolloutResult | None = None

    @property
    def pending(self) -> bool:  # type: ignore[override]
        """Whether the result was not yet returned by `get`."""
        return self._result is not None

    def start(self, step: int, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> None:
        """Run the episodes.

        Raises:
            RolloutInterrupted: `stop` said so.
            UserError: A simulator failed.
        """
        self._vector = self._vector or self.factory.open()
        start = time.perf_counter()
        episodes = self.factory.run(self._vector, agent, seeds, stop)
        self._result = RolloutResult(episodes, step, time.perf_counter() - start)

    def get(self, wait: bool, stop: Callable[[], bool]) -> RolloutResult | None:
        """The episodes, once."""
        result, self._result = self._result, None
        return result

    def close(self) -> None:
        """Close the environments."""
        if self._vector is not None:
            self._vector.close()


@dataclass(frozen=True)
class RolloutRequest:
    """What the rollout process gets for a rollout.

    Attributes:
        step: Updates behind the weights.
        weights: The policy's state dict, as `torch.save` writes it.
        seeds: Of the episodes.
    """

    step: int
    weights: bytes
    seeds: list[int]


@dataclass(frozen=True)
class RolloutTask:
    """What the rollout process runs.

    Args:
        factory: Of the vector environment.
        make_agent: Makes the agent that acts there; its normaliser is on the CPU.
        policy: On the CPU; each request brings its weights.
    """

    factory: VectorEnvFactory
    make_agent: AgentFactory
    policy: Policy

    @contextmanager
    def open(self, stop: Callable[[], bool]) -> Iterator[Callable[[RolloutRequest], RolloutResult]]:
        """Open the environments; the context's value runs a rollout."""
        torch.set_num_threads(1)
        device, policy = self.make_agent.device, self.policy.to(self.make_agent.device)
        self.make_agent.normalizer.to(device)
        agent = self.make_agent(policy, explore=True)
        vector = self.factory.open()

        def run(request: RolloutRequest) -> RolloutResult:
            weights = torch.load(io.BytesIO(request.weights), map_location=device, weights_only=True)
            policy.load_state_dict(weights)
            start = time.perf_counter()
            episodes = self.factory.run(vector, agent, request.seeds, stop)
            return RolloutResult(episodes, request.step, time.perf_counter() - start)

        try:
            yield run
        finally:
            vector.close()


class AsyncRolloutWorker(RolloutWorker):
    """Rollouts in a process of their own, with a copy of the weights, on a device of its choice.

    The copy is taken on the stream that trains and sent by a thread, so that training does not wait for it.

    Args:
        factory: Of the vector environment.
        make_agent: Makes the agent that acts there.
        policy: Has the shape of the policy that acts.
    """

    is_async = True

    def __init__(self, factory: VectorEnvFactory, make_agent: AgentFactory, policy: Policy) -> None:
        # On the CPU, since a handle of GPU memory would have to outlive its reader.
        normalizer = copy.deepcopy(make_agent.normalizer).cpu()
        make_agent = replace(make_agent, normalizer=normalizer, cuda_graph=None, compile=False)
        task = RolloutTask(factory, make_agent, copy.deepcopy(policy).cpu())
        key = "online.do_rollout_async"
        fix = f"set {key}=false to collect in the training process"
        self._worker: Worker[RolloutRequest, RolloutResult] = Worker(task, "rollout", key, fix)
        self._sender = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._sending: Future[None] | None = None
        self.pending = False

    def start(self, step: int, agent: Agent, seeds: Sequence[int], stop: Callable[[], bool]) -> None:
        """Send the weights and start the episodes."""
        snapshot = {name: value.detach().clone() for name, value in agent.policy.state_dict().items()}
        ready = torch.cuda.Event() if agent.device.type == "cuda" else None
        if ready:
            ready.record()
        self.pending = True
        self._sending = self._sender.submit(self._send, step, snapshot, list(seeds), ready)

    def _send(self, step: int, snapshot: dict[str, Tensor], seeds: list[int], ready: torch.cuda.Event | None) -> None:
        if ready:
            ready.synchronize()
        content = io.BytesIO()
        torch.save({name: value.cpu() for name, value in snapshot.items()}, content)
        self._worker.send(RolloutRequest(step, content.getvalue(), seeds))

    def get(self, wait: bool, stop: Callable[[], bool]) -> RolloutResult | None:
        """The episodes, once they have ended.

        Raises:
            UserError: A simulator failed, or the process died.
            RuntimeError: Another exception there; its traceback is the message.
            RolloutInterrupted: `stop` said so while this waited.
        """
        if not self.pending:
            return None
        if self._sending and self._sending.done():
            self._sending.result()
        while not self._worker.poll(0.05 if wait else 0):
            if not wait:
                return None
            if stop():
                raise RolloutInterrupted
        self.pending = False
        return self._worker.receive()

    def close(self) -> None:
        """End the process, which closes its environments first."""
        self._sender.shutdown(wait=True, cancel_futures=True)
        self._worker.close()
