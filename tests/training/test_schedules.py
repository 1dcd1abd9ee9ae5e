"""Every learning-rate schedule against its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from robolearn.errors import UserError
from robolearn.training.schedules import constant, cosine_decay_with_warmup, diffusers_schedule, vqbet

STEPS = 20
WARMUP = 5


def sgd(*rates: float) -> torch.optim.SGD:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=rates[0])


def rates(schedule: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    """The learning rates of updates 0, 1, ..., steps."""
    found = []
    for _ in range(steps + 1):
        found.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        schedule.step()
    return found


def warmed(after: Callable[[int], float]) -> Callable[[int], float]:
    return lambda step: step / WARMUP if step < WARMUP else after(step)


def done(step: int) -> float:
    """The share of the steps after the warm-up."""
    return (step - WARMUP) / (STEPS - WARMUP)


FORMULAS = {
    "cosine": warmed(lambda step: 0.5 * (1 + math.cos(math.pi * done(step)))),
    "linear": warmed(lambda step: 1 - done(step)),
    "constant": lambda step: 1.0,
    "constant_with_warmup": warmed(lambda step: 1.0),
    # From the rate down to 1e-7, diffusers' default.
    "polynomial": warmed(lambda step: (1 - 1e-7) * (1 - done(step)) + 1e-7),
    "cosine_with_restarts": warmed(
        lambda step: 0.5 * (1 + math.cos(math.pi * (done(step) % 1))) if step < STEPS else 0
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_schedules_follow_their_formulas(name: str) -> None:
    schedule = diffusers_schedule(sgd(1.0), STEPS, name=name, num_warmup_steps=WARMUP)
    assert rates(schedule, STEPS) == pytest.approx([FORMULAS[name](step) for step in range(STEPS + 1)], abs=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_beyond_the_last_step_the_rate_is_held(name: str) -> None:
    found = rates(diffusers_schedule(sgd(1.0), STEPS, name=name, num_warmup_steps=WARMUP), 2 * STEPS)
    assert found[STEPS:] == [found[STEPS]] * (STEPS + 1)


def test_without_hold_at_end_the_cosine_rises_again() -> None:
    found = rates(diffusers_schedule(sgd(1.0), STEPS, num_warmup_steps=WARMUP, hold_at_end=False), 2 * STEPS)
    expected = [FORMULAS["cosine"](step) for step in range(2 * STEPS + 1)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[STEPS + 10] > 0.5


def test_the_cosine_of_the_reference_as_it_was_measured() -> None:
    found = rates(diffusers_schedule(sgd(1.0), 20, num_warmup_steps=5, hold_at_end=False), 25)
    measured = {0: 0.0, 1: 0.2, 5: 1.0, 10: 0.75, 20: 0.0, 25: 0.25}
    assert {step: round(found[step], 4) for step in measured} == measured


def test_every_group_keeps_its_own_rate() -> None:
    optimizer = sgd(1.0, 0.1)
    diffusers_schedule(optimizer, STEPS, num_warmup_steps=4)
    for _ in range(2):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    whole = rates(diffusers_schedule(sgd(1.0), STEPS, num_warmup_steps=WARMUP), STEPS)
    first = diffusers_schedule(sgd(1.0), STEPS, num_warmup_steps=WARMUP)
    rates(first, 6)
    optimizer = sgd(1.0)
    second = diffusers_schedule(optimizer, STEPS, num_warmup_steps=WARMUP)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, STEPS - 7) == whole[7:]


def test_constant_never_changes() -> None:
    assert rates(constant(sgd(0.3), STEPS), 2 * STEPS) == [0.3] * (2 * STEPS + 1)


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"scheduler.name=cosin is none of .*did you mean 'cosine'"):
        diffusers_schedule(sgd(1.0), STEPS, name="cosin")


def test_a_schedule_that_needs_rules_we_have_no_key_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"scheduler.name=piecewise_constant is none of"):
        diffusers_schedule(sgd(1.0), STEPS, name="piecewise_constant")


def test_vqbet_of_the_reference_as_it_was_measured() -> None:
    schedule = vqbet(sgd(1.0), 30, num_warmup_steps=5, num_vqvae_training_steps=10, end_at_zero=False)
    found = rates(schedule, 29)
    measured = {9: 1.0, 10: 0.0, 15: 1.0, 20: 0.9045, 29: 0.4063}
    assert {step: round(found[step], 4) for step in measured} == measured


def test_vqbet_ends_at_zero_with_the_run_and_stays_there() -> None:
    found = rates(vqbet(sgd(1.0), 30, num_warmup_steps=5, num_vqvae_training_steps=10), 35)
    assert found[:10] == [1.0] * 10
    assert found[10:16] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[30:] == pytest.approx([0.0] * 6, abs=1e-12)


def test_cosine_decay_of_the_reference_as_it_was_measured() -> None:
    schedule = cosine_decay_with_warmup(sgd(1.0), 99, 5, 20, peak_lr=1.0, decay_lr=0.1, decay_after_warmup=False)
    found = rates(schedule, 10)
    measured = {4: 0.8333, 5: 0.8682, 10: 0.55}
    assert {step: round(found[step], 4) for step in measured} == measured


def test_cosine_decay_does_not_jump_after_the_warm_up_and_stays_at_its_end() -> None:
    found = rates(cosine_decay_with_warmup(sgd(1.0), 99, 5, 20, peak_lr=1.0, decay_lr=0.1), 25)
    assert found[5] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in zip(found[5:], found[6:], strict=False))
    assert found[20:] == pytest.approx([0.1] * 6)


def test_a_decay_to_more_than_the_peak_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        cosine_decay_with_warmup(sgd(1.0), 9, 1, 5, peak_lr=0.1, decay_lr=0.2)
    assert caught.value.key == "scheduler.decay_lr"
