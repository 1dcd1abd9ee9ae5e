"""The processes that train one model together (torch.distributed): who is who, and what they agree on."""

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

# An evaluation of the first process may take hours, in which the others wait for its word.
CONTROL_TIMEOUT = timedelta(days=2)
ERROR_TIMEOUT_S = 5
"""How long to wait for what a process that failed says of itself."""


class PeerError(Exception):
    """Another process of the run ended, and with it this one."""


class World:
    """This process among those that train one model; one that trains alone is the first of one.

    All of them have to call the methods in the same order, except `first`.

    Args:
        rank: Which process this is, counted from 0.
        size: How many there are.
        local_rank: Which one of this machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._control: Any = None
        self._asked: tuple[Any, Tensor] | None = None

    @classmethod
    def from_env(cls) -> "World":
        """What torchrun's variables say of this process, or SLURM's where srun started several."""
        named = os.environ
        if "RANK" in named and "WORLD_SIZE" in named:
            return cls(int(named["RANK"]), int(named["WORLD_SIZE"]), int(named.get("LOCAL_RANK", 0)))
        if int(named.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            return cls(int(named["SLURM_PROCID"]), int(named["SLURM_STEP_NUM_TASKS"]), int(named["SLURM_LOCALID"]))
        return cls()

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes, tells and evaluates."""
        return self.rank == 0

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """While open the processes can reach each other."""
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
            # What a process that died left unfinished can't be waited for.
            with suppress(Exception):
                dist.destroy_process_group()

    @contextmanager
    def propagate_errors(self) -> Iterator[None]:
        """A block that all processes leave together, and in which an error of one ends all of them.

        Raises:
            PeerError: Another process failed or died; the message says which and why, where it said so.
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
                raise PeerError(self._word_of_another()) from error
            self._leave_word(error)
            raise

    def run_on_main(self, function: Callable[[], T]) -> T:
        """What the function returns in the first process, which alone calls it while the others wait.

        Raises:
            PeerError: It raised an exception there.
        """
        if self.size == 1:
            return function()
        if not self.is_main_process:
            value, failure = self._told((None, None))
            if failure:
                raise PeerError(failure)
            return value
        try:
            value = function()
        except Exception as error:
            self._told((None, f"the first process ended: {with_class(error)}"))
            raise
        self._told((value, None))
        return value

    def all_gather_object(self, value: T) -> list[T]:
        """What each process gave, plain containers and tensors, in their order."""
        if self.size == 1:
            return [value]
        content = io.BytesIO()  # torch's own way of sending objects takes no tensors
        torch.save(value, content)
        contents: list[Any] = [None] * self.size
        dist.all_gather_object(contents, content.getvalue(), group=self._control)
        return [torch.load(io.BytesIO(each), weights_only=True) for each in contents]

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return rng.all_reduce_mean(value)

    def all_reduce_max(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        held = torch.tensor(number)
        dist.all_reduce(held, dist.ReduceOp.MAX, group=self._control)
        return int(held)

    def poll_max(self, number: int) -> int:
        """The largest number that any process gave one call ago; alone, the number given now.

        The answer travels while the processes work, so that asking at every step costs none of them a wait.
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
        """Wait for the first process, which decides by a signal's handler whether the run goes on.

        Raises:
            SystemExit: It does not.
        """
        if self.size == 1:
            return
        self._answer()  # to what was asked before it was delivered
        try:
            dist.barrier(self._control)
        except RuntimeError:
            raise SystemExit(0) from None

    def wrap_ddp(self, module: nn.Module) -> Callable[..., Any]:
        """The module, with gradients that become the mean over all processes as they are computed."""
        return module if self.size == 1 else _Averaging(module)

    def shard_sampler(self, sampler: BatchSampler) -> BatchSampler | ShardedSampler:
        """This process's share of a sampler's batches."""
        return sampler if self.size == 1 else ShardedSampler(sampler, self.rank, self.size)

    def _told(self, words: tuple[Any, Any]) -> tuple[Any, Any]:
        """The words of the first process."""
        held = [words]
        dist.broadcast_object_list(held, src=0, group=self._control)
        return held[0]

    def _leave_word(self, error: Exception) -> None:
        with suppress(Exception):  # the store is the first process's and may be gone with it
            _store().set("failed", f"process {self.rank} on {socket.gethostname()} failed: {with_class(error)}")

    def _word_of_another(self) -> str:
        """What a process that failed said of itself."""
        try:
            _store().wait(["failed"], timedelta(seconds=ERROR_TIMEOUT_S))
            return _store().get("failed").decode()
        except Exception:
            return f"another of the {self.size} processes died without a word; its own log may tell more"


class _Averaging:
    """A module in torch's DistributedDataParallel, anew whenever other weights of it are trained than before."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._learning: list[bool] = []
        self._parallel: nn.Module | None = None

    def __call__(self, *inputs: Any) -> Any:
        learning = [parameter.requires_grad for parameter in self._module.parameters()]
        if self._parallel is None or learning != self._learning:
            # Weights that a loss never reaches are the same in every step.
            self._parallel, self._learning = DistributedDataParallel(self._module, static_graph=True), learning
        return self._parallel(*inputs)


@contextmanager
def _rendezvous() -> Iterator[None]:
    """The variables by which torch finds the other processes; torchrun sets them, for SLURM submitit knows them."""
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
        # The next run of this process, and those it starts, are to look anew.
        for name in set(os.environ) - before:
            del os.environ[name]


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()


def _is_of_a_dead_peer(error: BaseException) -> bool:
    words = ("closed by peer", "reset by peer", "broken pipe", "timed out", "connection refused", "recvbytes")
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in words)
