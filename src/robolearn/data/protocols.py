"""What datasets offer to the rest of the project."""

from collections.abc import Callable, Collection
from typing import Protocol, Self

import torch
from torch import Tensor

from robolearn.data.sampling import BatchSampler
from robolearn.types import Batch, Spec, Stats, Window


class FrameSource(Protocol):
    """Frames that are served in whole batches by index: a loaded dataset or the replay buffer."""

    @property
    def device(self) -> torch.device:
        """Where `batch` gathers."""
        ...

    def batch(
        self, indices: Tensor, window: Window, *, pin: bool = False, keys: Collection[str] | None = None
    ) -> Batch:
        """The frames at `indices` with their windows; threads may call it at the same time.

        Does not synchronise with the device. Offsets beyond an episode's ends give its nearest frame.

        Args:
            indices: int64 (B,), on any device.
            window: Offsets, in frames, of observations, actions and rewards.
            pin: Gather into page-locked memory, from where a copy to a GPU is asynchronous.
            keys: Gather these alone; None for everything.

        Returns:
            Every observation and the action as (B, T, *shape) and, if the window has rewards, ``next.reward`` (B, T),
            each with ``<key>_is_pad`` (B, T), True beyond the episode's ends. Everything else as (B,), among it
            ``index``, the frames' indices, and ``task_index``, their tasks in ``spec.tasks``. Images are uint8, other
            observations and actions float32.
        """
        ...


class FrameDataset(FrameSource, Protocol):
    """Demonstrations that a policy is trained on, what the ``_target_`` of a dataset file builds.

    A dataset of your own may subclass it, which gives it `has_rewards`, `make_sampler` and `normalization_stats`.

    Attributes:
        name: Names it in messages.
        spec: Its features; images as (C, H, W).
        stats: float32 statistics of every feature of `spec`, of images (C, 1, 1).
        num_frames: Frames; batches index them from 0.
    """

    name: str
    spec: Spec
    stats: Stats
    num_frames: int

    @property
    def has_rewards(self) -> bool:
        """Whether batches hold ``next.reward``."""
        return False

    def load(self, device: torch.device) -> Self:
        """Read everything that `batch` serves; the constructor only reads what describes the dataset.

        Args:
            device: The device that trains; the frames may be placed there.

        Returns:
            Itself.

        Raises:
            UserError: A file is missing or broken, or there is no room.
        """
        ...

    def valid_indices(self, drop_n_last_frames: int) -> Tensor:
        """The frames to train on: int64 (n,), all but the last `drop_n_last_frames` of every episode.

        Raises:
            UserError: No frame is left.
        """
        ...

    def make_sampler(self, batch_size: int, seed: int, drop_n_last_frames: int = 0) -> BatchSampler:
        """Which of the valid frames each batch holds.

        Raises:
            UserError: No frame is left.
        """
        return BatchSampler(self.valid_indices(drop_n_last_frames), batch_size, seed)

    def normalization_stats(self, compute: Callable[["FrameDataset"], Stats]) -> tuple[Stats, list[Stats] | None]:
        """The statistics that samples are normalised with, once loaded.

        Args:
            compute: The statistics of the frames of one dataset, in the policy's units.

        Returns:
            The statistics that actions are unnormalised with, and those of each ``dataset_index`` of the batches where
            every sample is normalised with the statistics of its own dataset, else None.
        """
        return compute(self), None
