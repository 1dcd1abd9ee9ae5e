"""Phases: which batches each update gets, and what is collected when."""

from collections.abc import Generator

import pytest
import torch
from fakes.training import CountingCollector

from robolearn.data.batch_stream import TransformedStream
from robolearn.training.phases import OfflinePhase, OnlinePhase, Rollout
from robolearn.types import Batch


class Numbers:
    """A stream whose batch k holds k."""

    def __init__(self) -> None:
        self.is_open = False

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        self.is_open = True
        try:
            while True:
                yield {"index": torch.tensor([k])}
                k += 1
        finally:
            self.is_open = False


def run(rollout: Rollout) -> None:
    rollout(lambda: False)


def indices(updates: list[list[Batch]]) -> list[list[int]]:
    return [[int(batch["index"]) for batch in batches] for batches in updates]


@pytest.mark.parametrize("n", [1, 2])
def test_phases_follow_each_other_through_the_batches_of_a_run(n: int) -> None:
    collector = CountingCollector()
    phases = [OfflinePhase(0, 3, Numbers(), n), OnlinePhase(3, 2, Numbers(), n, collector=collector)]
    seen = indices([batches for phase in phases for batches in phase.updates(phase.start_step, run)])
    assert sum(seen, []) == list(range(5 * n))
    assert {len(batches) for batches in seen} == {n}
    assert collector.collected == [3, 4]


def test_a_resumed_run_gets_the_batches_that_are_left() -> None:
    collector = CountingCollector()
    offline, online = OfflinePhase(0, 3, Numbers(), 2), OnlinePhase(3, 2, Numbers(), 2, collector=collector)
    assert indices(list(offline.updates(2, run))) == [[4, 5]]
    assert list(offline.updates(4, run)) == []
    assert indices(list(online.updates(4, run))) == [[8, 9]]
    assert collector.collected == [4]


def test_what_is_due_is_collected_before_the_batch_is_drawn() -> None:
    collector, stream = CountingCollector(), Numbers()
    updates = OnlinePhase(0, 2, stream, collector=collector).updates(0, lambda _: order.append(stream.is_open))
    order: list[bool] = []
    next(updates)
    assert order == [False]  # the stream starts after the first rollout
    updates.close()
    assert not stream.is_open


def test_every_batch_passes_through_the_transforms_in_order() -> None:
    stream = TransformedStream(Numbers(), [lambda b: {"index": b["index"] + 1}, lambda b: {"index": b["index"] * 10}])
    phase = OfflinePhase(0, 3, stream)
    assert indices(list(phase.updates(1, run))) == [[20], [30]]
