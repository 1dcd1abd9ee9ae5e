"""Batches of a sampler in order, gathered ahead by threads while the current one is trained on."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from robolearn.data.protocols import FrameSource
from robolearn.data.sampling import BatchSampler, ShardedSampler
from robolearn.errors import at_least
from robolearn.types import Batch, Window


class Loader:
    """Serves the batches of a sampler in order, on a device.

    Args:
        dataset: Gathers the batches, in several threads at the same time.
        sampler: Gives the indices of batch k.
        window: Offsets of the frames around each index.
        device: Where the batches go.
        num_workers: Threads that gather ahead; with 0 a batch is gathered when it is asked for. Threads suffice, since
            gathering copies memory outside Python's lock. A dataset that lies on `device` uses none.

    Raises:
        UserError: `num_workers` is negative.
    """

    def __init__(
        self,
        dataset: FrameSource,
        sampler: BatchSampler | ShardedSampler,
        window: Window,
        device: torch.device,
        num_workers: int,
    ):
        at_least(0, num_workers=num_workers)
        self.dataset = dataset
        self.sampler = sampler
        self.window = window
        self.device = torch.device(device)
        self.num_workers = num_workers
        self._pin = self.device.type == "cuda" and dataset.device.type == "cpu"

    def __getitem__(self, k: int) -> Batch:
        """Batch k, gathered now."""
        return self._to_device(self._gather(self.sampler[k]))

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        """Batches k, k + 1, ... without end. Closing the generator ends its threads.

        An exception in a thread is raised here, at the batch it belongs to.
        """
        resident = self.dataset.device.type != "cpu"
        if resident or self.num_workers == 0:
            return self._direct(k)
        return self._ahead(k)

    def _direct(self, k: int) -> Generator[Batch, None, None]:
        while True:
            yield self[k]
            k += 1

    def _ahead(self, k: int) -> Generator[Batch, None, None]:
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader")
        pending: deque[Future[Batch]] = deque()
        try:
            while True:
                # The sampler keeps one permutation, so indices are drawn here, by one thread and in order.
                while len(pending) < 2 * self.num_workers:
                    pending.append(pool.submit(self._gather, self.sampler[k]))
                    k += 1
                # Copying to the device is left to this thread: it merely queues the copy on the stream that
                # will read it, and no other thread can disturb the capture of a CUDA graph by it.
                yield self._to_device(pending.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, indices: Tensor) -> Batch:
        return self.dataset.batch(indices, self.window, pin=self._pin)

    def _to_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        # A no-op for what is there already. From page-locked memory it does not wait.
        return {key: value.to(self.device, non_blocking=self._pin) for key, value in batch.items()}
