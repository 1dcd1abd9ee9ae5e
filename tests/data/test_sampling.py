"""The order of frames is a pure function of seed and step."""

import pytest
import torch

from robolearn.data import BatchSampler
from robolearn.errors import UserError


def test_epochs_are_permutations_across_batches():
    indices = torch.arange(100, 110)
    sampler = BatchSampler(indices, 4, seed=0)
    drawn = torch.cat([sampler[k] for k in range(10)])
    epochs = drawn.view(4, 10)
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, indices)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_any_order_gives_the_same():
    one, two = (BatchSampler(torch.arange(50), 16, seed=3) for _ in range(2))
    forward = [one[k] for k in range(30)]
    for k in reversed(range(30)):
        assert torch.equal(two[k], forward[k])
    assert one[0].dtype == torch.int64


def test_a_batch_larger_than_the_set():
    batch = BatchSampler(torch.arange(3), 8, seed=0)[0]
    assert torch.bincount(batch).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_seeds_differ():
    batches = {tuple(BatchSampler(torch.arange(1000), 8, seed)[0].tolist()) for seed in range(-20, 20)}
    assert len(batches) == 40


def test_nothing_to_draw():
    with pytest.raises(UserError, match="no frame"):
        BatchSampler(torch.arange(0), 8, 0)
    with pytest.raises(UserError, match="batch_size"):
        BatchSampler(torch.arange(3), 0, 0)
