"""The processes that train one model together (torch.distributed): ranks, collectives and errors of peers."""

import io
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from robolearn import rng
from robolearn.data.sampling import BatchSampler, ShardedSampler
from robolearn.errors import with_class

log = logging.getLogger(__name__)

T = TypeVar("T")

# An evaluation in the main process may take hours, in which the others wait for its result.
CONTROL_TIMEOUT = timedelta(days=2)
ERROR_TIMEOUT_S = 5
"""How long to wait for the error message of a process that failed."""


class PeerError(Exception):
    """Another process of the run failed, which ends this one too."""


class World:
    """The process group of a run, seen from this process; of a process that trains alone, a group of one.

    All processes have to call the methods in the same order, except `is_main_process`.

    Args:
        rank: The index of this process.
        size: The number of processes.
        local_rank: The index of this process on its machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._control: Any = None
        self._asked: tuple[Any, Tensor] | None = None

    @classmethod
    def from_env(cls) -> "World":
        """The group that torchrun's environment variables describe, or SLURM's where srun started several processes."""
        named = os.environ
        if "RANK" in named and "WORLD_SIZE" in named:
            return cls(int(named["RANK"]), int(named["WORLD_SIZE"]), int(named.get("LOCAL_RANK", 0)))
        if int(named.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return cls(int(named["SLURM_PROCID"]), int(named["SLURM_STEP_NUM_TASKS"]), int(named["SLURM_LOCALID"]))
        return cls()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes files, logs and evaluates (rank 0)."""
        return self.rank == 0

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """While open the processes can communicate."""
        if self.size == 1:
            yield
            return
        with _rendezvous():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            self._control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
            yield
        finally:
            rng.disable_sharding()
            # Collectives that a dead process left unfinished never end.
            with suppress(Exception):
                dist.destroy_process_group()

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """A block that all processes leave together, and in which an error in one ends all of them.

        Raises:
            PeerError: Another process failed or died; the message holds its rank and error where it left one.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
            self._answer()
            dist.barrier(self._control)
        except PeerError:
            raise
        except Exception as error:
            if _is_of_a_dead_peer(error):
                raise PeerError(self._peer_error()) from error
            self._publish_error(error)
            raise

    def run_on_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process, while the others wait, and return its result in all of them.

        Raises:
            PeerError: The function raised an exception in the main process.
        """
        if self.size == 1:
            return function()
        if not self.is_main_process:
            value, failure = self._broadcast((None, None))
            if failure:
                raise PeerError(failure)
            return value
        try:
            value = function()
        except Exception as error:
            self._broadcast((None, f"the first process ended: {with_class(error)}"))
            raise
        self._broadcast((value, None))
        return value

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, plain containers and tensors, in the order of ranks."""
        if self.size == 1:
            return [value]
        content = io.BytesIO()  # dist.all_gather_object takes no tensors
        torch.save(value, content)
        contents: list[Any] = [None] * self.size
        dist.all_gather_object(contents, content.getvalue(), group=self._control)
        return [torch.load(io.BytesIO(each), weights_only=True) for each in contents]

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return rng.all_reduce_mean(value)

    def all_reduce_max(self, number: int) -> int:
        """The largest number of all processes."""
        if self.size == 1:
            return number
        held = torch.tensor(number)
        dist.all_reduce(held, dist.ReduceOp.MAX, group=self._control)
        return int(held)

    def poll_max(self, number: int) -> int:
        """The largest number that any process passed one call ago; in a group of one, the number passed now.

        The reduction runs while the processes work, so that a call at every step waits for none of them.
        """
        if self.size == 1:
            return number
        answer = self._answer()
        held = torch.tensor(number)
        self._asked = dist.all_reduce(held, dist.ReduceOp.MAX, group=self._control, async_op=True), held
        return answer

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        work, held = self._asked
        work.wait()
        self._asked = None
        return int(held)

    def wait_for_main(self) -> None:
        """Wait until the main process, whose signal handler decides, continues or ends the run.

        Raises:
            SystemExit: It ended the run.
        """
        if self.size == 1:
            return
        self._answer()  # the reduction that was pending when the signal came
        try:
            dist.barrier(self._control)
        except RuntimeError:
            raise SystemExit(0) from None

    def wrap_ddp(self, module: nn.Module) -> Callable[..., Any]:
        """The module, its gradients averaged over all processes in the backward pass (DistributedDataParallel)."""
        return module if self.size == 1 else _DataParallel(module)

    def shard_sampler(self, sampler: BatchSampler) -> BatchSampler | ShardedSampler:
        """This process's shard of a sampler's batches."""
        return sampler if self.size == 1 else ShardedSampler(sampler, self.rank, self.size)

    def _broadcast(self, values: tuple[Any, Any]) -> tuple[Any, Any]:
        """The values that the main process gives."""
        received = [values]
        dist.broadcast_object_list(received, src=0, group=self._control)
        return received[0]

    def _publish_error(self, error: Exception) -> None:
        with suppress(Exception):  # the main process hosts the store, which may be gone with it
            _store().set("failed", f"process {self.rank} on {socket.gethostname()} failed: {with_class(error)}")

    def _peer_error(self) -> str:
        """The message that a process left when it failed."""
        try:
            _store().wait(["failed"], timedelta(seconds=ERROR_TIMEOUT_S))
            return _store().get("failed").decode()
        except Exception:
            return f"another of the {self.size} processes exited without an error message; see its own log"


class _DataParallel:
    """A module in DistributedDataParallel, wrapped again whenever the set of its trainable weights changes."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._trainable: list[bool] = []
        self._parallel: nn.Module | None = None

    def __call__(self, *inputs: Any) -> Any:
        trainable = [parameter.requires_grad for parameter in self._module.parameters()]
        if self._parallel is None or trainable != self._trainable:
            # A static graph: the weights that the loss does not reach are the same in every step.
            self._parallel, self._trainable = DistributedDataParallel(self._module, static_graph=True), trainable
        return self._parallel(*inputs)


@contextmanager
def _rendezvous() -> Iterator[None]:
    """Sets torch's rendezvous variables as torchrun does: within SLURM submitit derives them from the job."""
    if "RANK" in os.environ:
        yield
        return
    from submitit.helpers import TorchDistributedEnvironment

    before = set(os.environ)
    found = TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    try:
        socket.getaddrinfo(found.master_addr, found.master_port)
    except OSError:
        # A node's name in SLURM need not be known to DNS.
        os.environ["MASTER_ADDR"] = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", found.master_addr)
    try:
        yield
    finally:
        # Later runs of this process, and of its children, have a rendezvous of their own.
        for name in set(os.environ) - before:
            del os.environ[name]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _is_of_a_dead_peer(error: BaseException) -> bool:
    words = ("closed by peer", "reset by peer", "broken pipe", "timed out", "connection refused", "recvbytes")
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in words)
