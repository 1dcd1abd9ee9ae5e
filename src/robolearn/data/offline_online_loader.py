"""Batches of the online phase: demonstrations and frames collected since, a fixed share of each."""

from collections.abc import Generator
from contextlib import closing

import torch

from robolearn.data.loader import Loader
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.data.sampling import fold_seed
from robolearn.types import Batch, Window


class OfflineOnlineLoader:
    """Batches with a fixed number of samples of the buffer, the rest demonstrations.

    A batch depends on its index and on what the buffer holds when it is asked for, so that new episodes are drawn
    from at once and a resumed run sees the batches that one never stopped would. While the buffer holds less than
    `least_frames`, batches are demonstrations alone.

    Args:
        offline: Whole batches of demonstrations, those of the offline phase.
        demonstrations: The demonstrations' share of mixed batches; None where they have none.
        replay: What was collected.
        n_replay: Samples of the buffer in a mixed batch.
        window: The frames around each sample.
        device: Where the batches go.
        first_batch: Index of the first batch of the online phase.
        least_frames: Frames that the buffer holds before it is drawn from.
        seed: Of the draws from the buffer.
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
    ) -> None:
        self.offline, self.demonstrations, self.replay = offline, demonstrations, replay
        self.n_replay, self.window, self.device = n_replay, window, device
        self.first_batch, self.least_frames, self.seed = first_batch, least_frames, seed
        self._pin = device.type == "cuda" and replay.device.type == "cpu"

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        """Batches k, k + 1, ... without end. Closing the generator ends the threads that gather ahead."""
        if self.demonstrations is None:
            while True:
                yield self._collected(k) if self.ready else self.offline[k]
                k += 1
        with closing(self.demonstrations.iter_from(k - self.first_batch)) as batches:
            for demonstrated in batches:
                yield concat_batches(demonstrated, self._collected(k)) if self.ready else self.offline[k]
                k += 1

    @property
    def ready(self) -> bool:
        """Whether the buffer is drawn from."""
        return bool(self.n_replay and self.replay.num_sampleable and self.replay.frames >= self.least_frames)

    def _collected(self, k: int) -> Batch:
        generator = torch.Generator().manual_seed(fold_seed(self.seed, k))
        batch = self.replay.batch(self.replay.draw(self.n_replay, generator), self.window, pin=self._pin)
        return {key: value.to(self.device, non_blocking=self._pin) for key, value in batch.items()}


def concat_batches(one: Batch, other: Batch) -> Batch:
    """Both batches in one, with the keys that both have and the types of the first."""
    return {key: torch.cat([value, other[key].to(value.dtype)]) for key, value in one.items() if key in other}
