"""Threads that gather ahead: in order, with their exceptions, and gone when the run is over."""

import itertools
import threading
import time

import pytest
import torch
from fakes.datasets import write_dataset

from robolearn.data import BatchSampler, LeRobotDataset, Loader
from robolearn.errors import UserError
from robolearn.types import Window

CPU = torch.device("cpu")


class Source:
    """Serves the indices themselves, later ones sooner; refuses one."""

    device = CPU

    def __init__(self, bad=None):
        self.bad = bad

    def batch(self, indices, window, *, pin=False):
        time.sleep(float(torch.rand(())) * 0.01)
        if self.bad is not None and self.bad in indices:
            raise ValueError("a bad frame")
        return {"index": indices}


def threads() -> int:
    return sum(thread.name.startswith("loader") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("start", [0, 7])
def test_exact_order(workers, start):
    sampler = BatchSampler(torch.arange(40), 8, seed=1)
    batches = Loader(Source(), sampler, Window(), CPU, workers).iter_from(start)
    for k, batch in enumerate(itertools.islice(batches, 20), start):
        assert torch.equal(batch["index"], sampler[k])
    batches.close()
    assert threads() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_exceptions_come_out_at_their_batch(workers):
    sampler = BatchSampler(torch.arange(40), 8, seed=1)
    bad = int(sampler[3][0])
    batches = Loader(Source(bad), sampler, Window(), CPU, workers).iter_from(0)
    assert len([next(batches) for _ in range(3)]) == 3
    with pytest.raises(ValueError, match="a bad frame"):
        next(batches)
    assert threads() == 0


def test_dataset_through_threads(tmp_path):
    folder = write_dataset(tmp_path / "d", length=8, image_size=32)
    dataset = LeRobotDataset(root=str(folder), cache_dir=str(tmp_path / "c")).load(CPU)
    sampler, window = BatchSampler(dataset.valid_indices(2), 5, seed=0), Window((-1, 0), (0, 1))
    for batch, k in zip(Loader(dataset, sampler, window, CPU, 2).iter_from(2), range(2, 12), strict=False):
        expected = dataset.batch(sampler[k], window)
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[key], expected[key]) for key in batch)


def test_workers_are_counted_from_0():
    with pytest.raises(UserError, match="num_workers"):
        Loader(Source(), BatchSampler(torch.arange(4), 2, 0), Window(), CPU, -1)
