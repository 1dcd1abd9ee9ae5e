"""The order of frames is a pure function of seed and step."""

import pytest
import torch

from robolearn.data import BatchSampler, WeightedSampler
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


PARTS = [torch.arange(90), torch.arange(90, 100)]


def test_parts_have_their_shares_in_every_epoch():
    sampler = WeightedSampler(PARTS, [1.0, 3.0], 20, seed=0)
    for epoch in range(4):
        drawn = torch.cat([sampler[5 * epoch + k] for k in range(5)])
        assert (drawn >= 90).sum() == 75
    counts = torch.bincount(torch.cat([sampler[k] for k in range(36 * 5)]), minlength=100)
    assert set(counts[:90].tolist()) == {10}  # 36 epochs draw 25 of these 90 each, without replacement
    assert set(counts[90:].tolist()) == {270}


def test_batches_of_weighted_parts_do_not_depend_on_what_was_asked_before():
    one, two = (WeightedSampler(PARTS, [0.5, 0.5], 16, seed=3) for _ in range(2))
    forward = [one[k] for k in range(30)]
    for k in reversed(range(30)):
        assert torch.equal(two[k], forward[k])


def test_a_part_without_weight_is_not_drawn():
    drawn = torch.cat([WeightedSampler(PARTS, [0.0, 2.0], 16, seed=3)[k] for k in range(10)])
    assert drawn.min() >= 90


def test_parts_are_mixed_within_an_epoch():
    sampler = WeightedSampler(PARTS, [1.0, 1.0], 20, seed=0)
    assert all(3 <= (sampler[k] >= 90).sum() <= 17 for k in range(5))
