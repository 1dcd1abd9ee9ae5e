"""Random numbers: seeding, isolation, saved states, and the draws and sums of a batch sharded over processes.

Where several processes train one model, each holds one shard of every batch. A policy draws its per-sample noise with
`randn`, `rand`, `randint` and `exponential`, and each process gets the rows that a single process with the whole batch
would draw for the same samples. A process that trains alone gets torch's own draws.

This module imports no other of robolearn.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Generator, Tensor


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (on every device) of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party code draws from it)
    torch.manual_seed(seed)


def fold_seed(seed: int, number: int) -> int:
    """A seed of 63 bits, independent of those of neighboring seeds and numbers, as `jax.random.fold_in` gives."""
    word = np.random.SeedSequence([seed & 0xFFFFFFFFFFFFFFFF, number]).generate_state(1, np.uint64)[0]
    return int(word >> np.uint64(1))


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Seed all global generators, on every device in use, and restore their states when the block ends."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (third-party code draws from it)
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            seed_all(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def get_rng_state() -> dict[str, Any]:
    """The states of all global generators of this process, in plain containers that a checkpoint can hold."""
    name, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (third-party code draws from it)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).copy()), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Restore what `get_rng_state` returned; GPUs only where there are as many of them."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


class Shard:
    """One process's part of every batch.

    Args:
        rank: The index of the process.
        size: The number of processes, hence of shards.
        generator: In the same state in all processes; every draw advances it by that of the whole batch.
    """

    def __init__(self, rank: int, size: int, generator: Generator) -> None:
        self.rank, self.size, self.generator = rank, size, generator


_shard: Shard | None = None


def enable_sharding(rank: int, size: int, device: torch.device) -> None:
    """From now on this process holds shard `rank` of `size` of every batch.

    The generator that all processes share starts from the default generator's state, which must be the same in all of
    them. The default generator is then reseeded in all but the first process, so that draws that belong to no sample
    (dropout, image augmentation) differ between processes.
    """
    global _shard
    generator = Generator(device)
    generator.set_state(_default(device).get_state())
    if rank:
        torch.manual_seed(fold_seed(torch.initial_seed(), rank))
    _shard = Shard(rank, size, generator)


def disable_sharding() -> None:
    """From now on this process holds whole batches."""
    global _shard
    _shard = None


@contextmanager
def unsharded() -> Iterator[None]:
    """A block in which this process holds whole batches, such as an evaluation that the others wait for."""
    global _shard
    before, _shard = _shard, None
    try:
        yield
    finally:
        _shard = before


def get_shared_state() -> Tensor | None:
    """The state of the generator that all processes share; None without sharding, where the default one serves."""
    return _shard.generator.get_state() if _shard else None


def set_shared_state(state: Tensor | None, device: torch.device) -> None:
    """Restore what `get_shared_state` returned, also in another number of processes; None changes nothing.

    Without sharding the default generator takes the state.
    """
    if state is not None:
        (_shard.generator if _shard else _default(device)).set_state(state)


def randn(shape: Sequence[int], device: torch.device, dtype: torch.dtype | None = None, dim: int = 0) -> Tensor:
    """Standard normal numbers, samples along `dim`."""
    if _shard is None:
        return torch.randn(shape, device=device, dtype=dtype)
    return _draw(_shard, shape, torch.empty(0, device=device, dtype=dtype), Tensor.normal_, dim)


def rand(shape: Sequence[int], device: torch.device, dim: int | None = 0) -> Tensor:
    """Uniform numbers of [0, 1), samples along `dim`; None: one draw shared by all samples."""
    if _shard is None:
        return torch.rand(shape, device=device)
    return _draw(_shard, shape, torch.empty(0, device=device), Tensor.uniform_, dim)


def exponential(like: Tensor, dim: int = 0) -> Tensor:
    """Exponentially distributed numbers of mean 1, of the shape and dtype of `like`, samples along `dim`.

    Without sharding they are drawn in the order of its memory, as `torch.multinomial` does.
    """
    if _shard is None:
        return torch.empty_like(like).exponential_()
    return _draw(_shard, like.shape, like.new_empty(0), Tensor.exponential_, dim)


def randint(high: int, shape: Sequence[int], device: torch.device, dim: int | None = 0) -> Tensor:
    """Uniform integers (int64) of [0, high), samples along `dim`; None: one draw shared by all samples."""
    if _shard is None:
        return torch.randint(high, shape, device=device)
    fill = partial(_fill_below, high)
    return _draw(_shard, shape, torch.empty(0, device=device, dtype=torch.int64), fill, dim)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over all processes of a tensor that needs no gradient; does not synchronise with the device."""
    if _shard is None:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over all processes of a tensor that needs no gradient, as floats.

    Losses are averaged over the processes. A loss that divides the sum over its shard by the mean of the shards' counts
    therefore averages to the sum over the whole batch divided by the count of the whole batch.
    """
    return value if _shard is None else all_reduce_sum(value.float()) / _shard.size


def _draw_shard(
    shard: Shard, shape: Sequence[int], empty: Tensor, fill: Callable[..., Tensor], dim: int | None
) -> Tensor:
    whole = list(shape)
    if dim is not None:
        whole[dim] *= shard.size
    drawn = fill(empty.new_empty(whole), generator=shard.generator)
    return drawn if dim is None else drawn.narrow(dim, shard.rank * shape[dim], shape[dim])


# torch.compile supports no generator but the default one.
_draw: Callable[..., Tensor] = cast(Any, torch.compiler.disable)(_draw_shard)


def _fill_below(high: int, empty: Tensor, generator: Generator) -> Tensor:
    return empty.random_(0, high, generator=generator)


def _default(device: torch.device) -> Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index if device.index is not None else torch.cuda.current_device()]
    return torch.default_generator
