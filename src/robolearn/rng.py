"""What belongs to a whole batch when several processes train on shares of it: its random numbers and its sums.

A policy draws the numbers of its samples here, and every process gets those of its own: the rows that one process with
the whole batch would draw for the same samples. Where one process trains alone the functions are torch's own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Generator, Tensor

from robolearn.data.sampling import fold_seed


class Shard:
    """Which share of every batch is this process's, and the generator that is in the same state in all processes."""

    def __init__(self, rank: int, size: int, generator: Generator) -> None:
        self.rank, self.size, self.generator = rank, size, generator


_share: Shard | None = None


def enable_sharding(rank: int, size: int, device: torch.device) -> None:
    """From now on this process has share `rank` of `size` of every batch.

    What all processes draw alike goes on from the default generator, which must be in the same state in all of them.
    That one is then seeded anew in all but the first, so that what is drawn for no sample in particular (dropout,
    changes of images) differs.
    """
    global _share
    generator = Generator(device)
    generator.set_state(_default(device).get_state())
    if rank:
        torch.manual_seed(fold_seed(torch.initial_seed(), rank))
    _share = Shard(rank, size, generator)


def disable_sharding() -> None:
    """From now on this process has whole batches."""
    global _share
    _share = None


@contextmanager
def unsharded() -> Iterator[None]:
    """In the block this process has whole batches: it evaluates, say, while the others wait."""
    global _share
    before, _share = _share, None
    try:
        yield
    finally:
        _share = before


def get_state() -> Tensor | None:
    """The state of what all processes draw alike; None where one trains alone and its default generator has it."""
    return _share.generator.get_state() if _share else None


def set_state(state: Tensor | None, device: torch.device) -> None:
    """Take up a state, also that of more or fewer processes; None: it is where the default generator was."""
    if state is not None:
        (_share.generator if _share else _default(device)).set_state(state)


def randn(shape: Sequence[int], device: torch.device, dtype: torch.dtype | None = None, dim: int = 0) -> Tensor:
    """Standard normal numbers, samples along `dim`."""
    if _share is None:
        return torch.randn(shape, device=device, dtype=dtype)
    return _draw(_share, shape, torch.empty(0, device=device, dtype=dtype), Tensor.normal_, dim)


def rand(shape: Sequence[int], device: torch.device, dim: int | None = 0) -> Tensor:
    """Numbers evenly drawn from [0, 1), samples along `dim`; None: the same for all samples."""
    if _share is None:
        return torch.rand(shape, device=device)
    return _draw(_share, shape, torch.empty(0, device=device), Tensor.uniform_, dim)


def exponential(like: Tensor, dim: int = 0) -> Tensor:
    """Numbers of an exponential distribution of mean 1 as a tensor has them, samples along `dim`.

    Alone they are drawn in the order of its memory, as `torch.multinomial` does.
    """
    if _share is None:
        return torch.empty_like(like).exponential_()
    return _draw(_share, like.shape, like.new_empty(0), Tensor.exponential_, dim)


def randint(high: int, shape: Sequence[int], device: torch.device, dim: int | None = 0) -> Tensor:
    """Whole numbers (int64) evenly drawn from [0, high), samples along `dim`; None: the same for all samples."""
    if _share is None:
        return torch.randint(high, shape, device=device)
    fill = partial(_fill_below, high)
    return _draw(_share, shape, torch.empty(0, device=device, dtype=torch.int64), fill, dim)


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum over all processes of a tensor that needs no gradient; queued on the device, which nothing waits for."""
    if _share is None:
        return value
    summed = value.detach().clone()
    dist.all_reduce(summed)
    return summed


def all_reduce_mean(value: Tensor) -> Tensor:
    """The mean over all processes of a tensor that needs no gradient, as floats.

    Losses are averaged over the processes: one that divides its share's sum by the mean of the shares' counts comes to
    the whole batch's sum over the whole batch's count.
    """
    return value if _share is None else all_reduce_sum(value.float()) / _share.size


def _drawn(share: Shard, shape: Sequence[int], empty: Tensor, fill: Callable[..., Tensor], dim: int | None) -> Tensor:
    whole = list(shape)
    if dim is not None:
        whole[dim] *= share.size
    drawn = fill(empty.new_empty(whole), generator=share.generator)
    return drawn if dim is None else drawn.narrow(dim, share.rank * shape[dim], shape[dim])


# Which knows no generator but the default one.
_draw: Callable[..., Tensor] = cast(Any, torch.compiler.disable)(_drawn)


def _fill_below(high: int, empty: Tensor, generator: Generator) -> Tensor:
    return empty.random_(0, high, generator=generator)


def _default(device: torch.device) -> Generator:
    if device.type == "cuda":
        torch.cuda.init()
        return torch.cuda.default_generators[device.index if device.index is not None else torch.cuda.current_device()]
    return torch.default_generator
