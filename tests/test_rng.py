"""Random numbers: states, isolation, and draws for a shard that are those of one process with the whole batch."""

import io
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robolearn import rng
from robolearn.data.sampling import BatchSampler, ShardedSampler
from robolearn.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _unsharded() -> Iterator[None]:
    yield
    rng.disable_sharding()


def draw_everywhere() -> list[Any]:
    """Numbers of every global generator, also of those that draw in pairs."""
    python = [random.random(), random.gauss(0, 1)]
    numpy = [np.random.rand(), np.random.standard_normal()]
    return [*python, *numpy, *torch.rand(3).tolist()]


def test_policies_import_no_data_and_rng_nothing_of_the_project() -> None:
    code = "import sys, {}; print(sorted(m for m in sys.modules if m.startswith('robolearn.{}')))"
    for module, absent, expected in (("policies.act", "data", "[]"), ("rng", "", "['robolearn.rng']")):
        command = [sys.executable, "-c", code.format(f"robolearn.{module}", absent)]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected


def test_a_seed_decides_the_draws_of_every_generator() -> None:
    rng.seed_all(2**32 + 5)
    expected = draw_everywhere()
    draw_everywhere()
    rng.seed_all(2**32 + 5)
    assert draw_everywhere() == expected


def test_every_generator_resumes_from_a_saved_state() -> None:
    draw_everywhere()
    file = io.BytesIO()
    torch.save(rng.get_rng_state(), file)
    expected = [draw_everywhere(), draw_everywhere()]
    rng.seed_all(99)
    rng.set_rng_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert [draw_everywhere(), draw_everywhere()] == expected


def test_an_isolated_block_draws_by_its_seed_and_changes_nothing() -> None:
    with rng.isolated_rng(7):
        inside = draw_everywhere()
    rng.seed_all(3)
    expected = draw_everywhere()
    rng.seed_all(3)
    with suppress(KeyError), rng.isolated_rng(7):
        assert draw_everywhere() == inside
        raise KeyError
    assert draw_everywhere() == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_generator_is_restored() -> None:
    state = rng.get_rng_state()
    expected = torch.rand(3, device="cuda")
    rng.set_rng_state(state)
    with rng.isolated_rng(3):
        torch.rand(2, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), expected)


def test_folded_seeds_of_neighbors_differ() -> None:
    seeds = {rng.fold_seed(seed, number) for seed in range(20) for number in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert rng.fold_seed(-1, 0) == rng.fold_seed(2**64 - 1, 0)


def drawn(rows: int) -> list[tuple[Tensor, int | None]]:
    """Draws for `rows` samples, each with the dimension that counts them."""
    return [
        (rng.randn((rows, 3, 5), CPU), 0),
        (rng.randint(7, (rows,), CPU), 0),
        (rng.randint(9, (4, rows, 2), CPU, dim=1), 1),
        (rng.rand((6,), CPU, dim=None), None),
        (rng.exponential(torch.empty(rows, 2)), 0),
        (rng.randint(9, (1,), CPU, dim=None), None),
        (rng.randn((rows, 40), CPU), 0),
    ]


def of_rank(rank: int, size: int, seed: int = 3) -> list[tuple[Tensor, int | None]]:
    torch.manual_seed(seed)
    rng.enable_sharding(rank, size, CPU)
    return drawn(8 // size)


@pytest.mark.parametrize("size", [2, 4])
def test_shards_together_are_what_one_process_draws(size: int) -> None:
    torch.manual_seed(3)
    alone = drawn(8)
    each = [of_rank(rank, size) for rank in range(size)]
    for number, (whole, dim) in enumerate(alone):
        parts = [draws[number][0] for draws in each]
        if dim is None:
            assert all(torch.equal(part, whole) for part in parts)
        else:
            assert torch.equal(torch.cat(parts, dim=dim), whole)


def test_alone_draws_are_those_of_torch() -> None:
    torch.manual_seed(3)
    expected = [torch.randn(8, 3), torch.randint(7, (8,)), torch.rand(8), torch.empty(8).exponential_()]
    torch.manual_seed(3)
    found = [rng.randn((8, 3), CPU), rng.randint(7, (8,), CPU), rng.rand((8,), CPU)]
    found.append(rng.exponential(torch.empty(8)))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_what_belongs_to_no_sample_differs() -> None:
    of_rank(0, 2)
    first = torch.nn.functional.dropout(torch.ones(100))
    of_rank(1, 2)
    second = torch.nn.functional.dropout(torch.ones(100))
    assert not torch.equal(first, second)


def test_other_processes_seeds_differ_with_the_runs() -> None:
    of_rank(1, 2, seed=3)
    first = torch.rand(10)
    of_rank(1, 2, seed=4)
    assert not torch.equal(torch.rand(10), first)


def test_a_state_resumes_in_more_or_fewer_processes() -> None:
    of_rank(1, 2)
    state = rng.get_shared_state()
    rng.disable_sharding()
    rng.set_shared_state(state, CPU)
    whole = torch.randn(8, 3)
    torch.manual_seed(99)
    rng.enable_sharding(3, 4, CPU)
    rng.set_shared_state(state, CPU)
    assert torch.equal(rng.randn((2, 3), CPU), whole[6:])


def test_evaluations_draw_for_themselves() -> None:
    of_rank(1, 2)
    before = rng.get_shared_state()
    with rng.unsharded():
        assert rng.get_shared_state() is None
        assert rng.randn((4,), CPU).shape == (4,)
    assert torch.equal(rng.get_shared_state(), before)


def test_every_sample_of_a_batch_is_in_one_shard() -> None:
    sampler = BatchSampler(torch.arange(50), 12, seed=1)
    parts = [ShardedSampler(sampler, rank, 3)[7] for rank in range(3)]
    assert torch.equal(torch.cat(parts), sampler[7])
    with pytest.raises(UserError, match=r"batch_size is 12, which 5 processes can't share evenly"):
        ShardedSampler(sampler, 0, 5)
