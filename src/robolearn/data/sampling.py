"""The order in which frames are drawn: a pure function of the seed and the step."""

import numpy as np
import torch
from torch import Tensor

from robolearn.errors import UserError


class BatchSampler:
    """Batches of indices, drawn without replacement, epoch after epoch.

    ``sampler[k]`` depends on `indices`, `batch_size`, `seed` and k alone: a run that resumes at step k needs
    no state of the sampler. Every epoch is a permutation of `indices`; a batch may run across its end.

    Args:
        indices: What is drawn, int64 (n,).
        batch_size: Indices a batch.
        seed: Any whole number.
    """

    def __init__(self, indices: Tensor, batch_size: int, seed: int):
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, but a batch needs at least one sample.")
        if indices.numel() == 0:
            raise UserError("The dataset offers no frame to draw: choose more of them with dataset.episodes.")
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
            # SeedSequence mixes both words into every bit, so that neighbouring seeds and epochs share nothing.
            entropy = [self.seed & 0xFFFFFFFFFFFFFFFF, epoch]
            word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))
            self._order = self.indices[torch.randperm(len(self.indices), generator=generator)]
            self._epoch = epoch
        return self._order
