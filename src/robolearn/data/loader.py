"""Batches ahead of time: threads gather the coming ones while the present one is trained on."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from robolearn.data.sampling import BatchSampler, ShardedSampler
from robolearn.errors import UserError
from robolearn.types import Batch, Window


class FrameDataset(Protocol):
    """What serves batches by index, as `robolearn.data.LeRobotDataset` does."""

    @property
    def device(self) -> torch.device:
        """Where batches come to lie."""
        ...

    def batch(self, indices: Tensor, window: Window, *, pin: bool = False) -> Batch:
        """The frames `indices` (B,) with their windows; `pin` asks for page-locked host memory."""
        ...


class Loader:
    """Serves the batches of a sampler in order, on a device.

    Args:
        dataset: What gathers them; threads call it at the same time.
        sampler: Which indices batch k holds.
        window: The frames around each index.
        device: Where the batches go.
        num_workers: Threads that gather ahead; 0 gathers when asked. Gathering copies memory outside
            Python's lock, so that threads do. A dataset that lies on `device` needs none and uses none.
    """

    def __init__(
        self,
        dataset: FrameDataset,
        sampler: BatchSampler | ShardedSampler,
        window: Window,
        device: torch.device,
        num_workers: int,
    ):
        if num_workers < 0:
            raise UserError(f"num_workers is {num_workers}, but it counts threads: use 0 or more.")
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

        An exception of a thread is raised here, at the batch it belongs to.
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
