"""The order in which frames are drawn, a pure function of the seed and the batch index."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robolearn.errors import UserError
from robolearn.rng import fold_seed


class BatchSampler:
    """Batches of indices, drawn without replacement, epoch after epoch.

    ``sampler[k]`` depends on `indices`, `batch_size`, `seed` and k alone: a run that resumes at step k needs
    no state of the sampler. Every epoch is a permutation of `indices`; a batch may run across its end.

    Args:
        indices: What is drawn, int64 (n,).
        batch_size: Indices a batch.
        seed: Any integer.
    """

    def __init__(self, indices: Tensor, batch_size: int, seed: int):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but a batch needs at least one sample.", key="batch_size")
        if indices.numel() == 0:
            raise UserError(
                "The dataset offers no frame to draw", key="dataset.episodes", fix="choose more of dataset.episodes"
            )
        self.indices = indices.to("cpu", torch.int64)
        self.batch_size = batch_size
        self.seed = seed
        self._epoch = -1
        self._order = self.indices

    def __getitem__(self, k: int) -> Tensor:
        """The indices of batch k >= 0: int64 (batch_size,), on the CPU."""
        if k < 0:
            raise IndexError(f"batches are counted from 0, not {k}")
        size, first = len(self.indices), k * self.batch_size
        parts, stop = [], first + self.batch_size
        while first < stop:
            epoch, offset = divmod(first, size)
            part = self._permutation(epoch)[offset : offset + stop - first]
            parts.append(part)
            first += len(part)
        return torch.cat(parts)

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(fold_seed(self.seed, epoch))
            self._order = self._epoch_indices(epoch)[torch.randperm(len(self.indices), generator=generator)]
            self._epoch = epoch
        return self._order

    def _epoch_indices(self, epoch: int) -> Tensor:
        """What an epoch draws, as many each time, still in order."""
        del epoch
        return self.indices


class WeightedSampler(BatchSampler):
    """Batches in which several parts have fixed shares, whatever their sizes; as repeatable as a `BatchSampler`.

    An epoch is as long as all parts together. Every part is drawn without replacement, from one epoch into the next,
    until all of it was drawn, then again.

    Args:
        parts: What is drawn, int64 (n_i,) each.
        weights: The parts' shares, which need not add up to 1.
        batch_size: Indices a batch.
        seed: Any integer.
    """

    def __init__(self, parts: Sequence[Tensor], weights: Sequence[float], batch_size: int, seed: int):
        super().__init__(torch.cat(list(parts)), batch_size, seed)
        counts = _apportion(len(self.indices), weights)
        numbered = [(i, part, count) for i, (part, count) in enumerate(zip(parts, counts, strict=True)) if count]
        self._parts = [BatchSampler(part, count, fold_seed(seed, 1 + i)) for i, part, count in numbered]

    def _epoch_indices(self, epoch: int) -> Tensor:
        return torch.cat([part[epoch] for part in self._parts])


class ShardedSampler:
    """One process's share of every batch of a sampler, where several train together.

    Args:
        sampler: Of whole batches, whose size is a multiple of `size`.
        rank: Which share.
        size: How many shares.
    """

    def __init__(self, sampler: BatchSampler, rank: int, size: int):
        if sampler.batch_size % size:
            raise UserError(
                f"batch_size is {sampler.batch_size}, which {size} processes can't share evenly.", key="batch_size"
            )
        self._sampler, self._rank, self._size = sampler, rank, size

    def __getitem__(self, k: int) -> Tensor:
        """The indices of this share of batch k, in the batch's order: int64 (batch_size / size,)."""
        return self._sampler[k].chunk(self._size)[self._rank]


def _apportion(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in integers proportional to the weights, the largest remainders rounded up."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts
