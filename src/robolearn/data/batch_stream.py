"""Streams of batches, and what happens to every batch of one on the device."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Protocol

from robolearn.types import Batch

BatchTransform = Callable[[Batch], Batch]
"""From a batch on the device to a new one: augmentation, or the tasks that the policy reads."""


class BatchStream(Protocol):
    """Where the batches of a phase come from."""

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        """Batches k, k + 1, ... without end, each a function of its index and of what was collected by then."""
        ...


class TransformedStream:
    """A stream whose batches pass through functions, one after the other.

    They run in the thread that asks for the batch, not in those that gather ahead: the random numbers they draw are
    the run's, in the order of its batches.

    Args:
        stream: The batches before.
        transforms: Applied in order.
    """

    def __init__(self, stream: BatchStream, transforms: Sequence[BatchTransform]) -> None:
        self.stream, self.transforms = stream, transforms

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        """Batches k, k + 1, ... without end."""
        with closing(self.stream.iter_from(k)) as batches:
            for batch in batches:
                for transform in self.transforms:
                    batch = transform(batch)
                yield batch
