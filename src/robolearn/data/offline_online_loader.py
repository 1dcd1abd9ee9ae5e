"""Batches of the online phase: demonstrations and collected frames, a fixed share of each."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from robolearn.data.loader import Loader
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.rng import fold_seed
from robolearn.types import Batch, Window


class OfflineOnlineLoader:
    """Batches with a fixed number of samples of the replay buffer, the rest demonstrations.

    A batch depends on its index and on what the buffer holds when it is asked for, so that new episodes are drawn
    from at once and a resumed run sees the batches that an uninterrupted one would have seen. What is gathered ahead is
    dropped when an episode is added. While the buffer holds less than `least_frames`, batches are demonstrations alone.

    Args:
        offline: Whole batches of demonstrations, those of the offline phase.
        demonstrations: The demonstrations' share of mixed batches; None where they have none.
        replay: The collected episodes.
        n_replay: Samples of the buffer in a mixed batch.
        window: The frames around each sample.
        device: Where the batches go.
        first_batch: Index of the first batch of the online phase.
        least_frames: Frames that the buffer holds before it is drawn from.
        seed: Of the draws from the buffer.
        num_workers: Threads that gather collected frames ahead; 0 gathers when asked. A buffer on a GPU uses none.
    """

    def __init__(
        self,
        offline: Loader,
        demonstrations: Loader | None,
        replay: ReplayBuffer,
        n_replay: int,
        window: Window,
        device: torch.device,
        first_batch: int,
        least_frames: int,
        seed: int,
        num_workers: int = 0,
    ) -> None:
        self.offline, self.demonstrations, self.replay = offline, demonstrations, replay
        self.n_replay, self.window, self.device = n_replay, window, device
        self.first_batch, self.least_frames, self.seed = first_batch, least_frames, seed
        self.num_workers = num_workers if replay.device.type == "cpu" else 0
        self._pin = device.type == "cuda" and replay.device.type == "cpu"

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        """Batches k, k + 1, ... without end. Closing the generator ends the threads that gather ahead."""
        with ExitStack() as stack:
            collected = stack.enter_context(closing(self._ahead(k) if self.num_workers else self._direct(k)))
            if self.demonstrations is None:
                for index, share in enumerate(collected, k):
                    yield self._to_device(share) if share else self.offline[index]
                return
            recorded = stack.enter_context(closing(self.demonstrations.iter_from(k - self.first_batch)))
            for index, (other, share) in enumerate(zip(recorded, collected, strict=True), k):
                yield concat_batches(other, self._to_device(share)) if share else self.offline[index]

    @property
    def ready(self) -> bool:
        """Whether the buffer is drawn from."""
        return bool(self.n_replay and self.replay.num_sampleable and self.replay.frames >= self.least_frames)

    def _direct(self, k: int) -> Generator[Batch | None, None, None]:
        """The collected share of batches k, k + 1, ..., None where the buffer is not drawn from."""
        while True:
            yield self._gather(self._draw(k)) if self.ready else None
            k += 1

    def _ahead(self, k: int) -> Generator[Batch | None, None, None]:
        """The same, gathered by threads."""
        pending: deque[Future[Batch]] = deque()
        pool, newest = ThreadPoolExecutor(self.num_workers, thread_name_prefix="loader"), -1
        try:
            while True:
                if newest != self.replay.next_index:
                    # An episode was added: the draws differ, and threads may have read rows while they were written.
                    for future in pending:
                        future.cancel()
                    pending.clear()
                    newest = self.replay.next_index
                while self.ready and len(pending) < 2 * self.num_workers:
                    pending.append(pool.submit(self._gather, self._draw(k + len(pending))))
                yield pending.popleft().result() if pending else None
                k += 1
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _draw(self, k: int) -> Tensor:
        return self.replay.draw(self.n_replay, torch.Generator().manual_seed(fold_seed(self.seed, k)))

    def _gather(self, indices: Tensor) -> Batch:
        return self.replay.batch(indices, self.window, pin=self._pin)

    def _to_device(self, batch: Batch) -> Batch:
        return {key: value.to(self.device, non_blocking=self._pin) for key, value in batch.items()}


def concat_batches(one: Batch, other: Batch) -> Batch:
    """Both batches in one, with the keys that both have and the types of the first."""
    return {key: torch.cat([value, other[key].to(value.dtype)]) for key, value in one.items() if key in other}
