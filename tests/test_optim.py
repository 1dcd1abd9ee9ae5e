"""Parameter groups by name, and every learning-rate schedule against its formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from robolearn.errors import UserError
from robolearn.optim import constant, diffuser, merge_options

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
    schedule = diffuser(sgd(1.0), STEPS, name=name, num_warmup_steps=WARMUP)
    assert rates(schedule, STEPS) == pytest.approx([FORMULAS[name](step) for step in range(STEPS + 1)], abs=1e-12)


@pytest.mark.parametrize("name", FORMULAS)
def test_beyond_the_last_step_the_rate_is_held(name: str) -> None:
    found = rates(diffuser(sgd(1.0), STEPS, name=name, num_warmup_steps=WARMUP), 2 * STEPS)
    assert found[STEPS:] == [found[STEPS]] * (STEPS + 1)


def test_without_hold_at_end_the_cosine_rises_again() -> None:
    found = rates(diffuser(sgd(1.0), STEPS, num_warmup_steps=WARMUP, hold_at_end=False), 2 * STEPS)
    expected = [FORMULAS["cosine"](step) for step in range(2 * STEPS + 1)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[STEPS + 10] > 0.5


def test_every_group_keeps_its_own_rate() -> None:
    optimizer = sgd(1.0, 0.1)
    diffuser(optimizer, STEPS, num_warmup_steps=4)
    for _ in range(2):
        optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    whole = rates(diffuser(sgd(1.0), STEPS, num_warmup_steps=WARMUP), STEPS)
    first = diffuser(sgd(1.0), STEPS, num_warmup_steps=WARMUP)
    rates(first, 6)
    optimizer = sgd(1.0)
    second = diffuser(optimizer, STEPS, num_warmup_steps=WARMUP)
    optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert rates(second, STEPS - 7) == whole[7:]


def test_constant_never_changes() -> None:
    assert rates(constant(sgd(0.3), STEPS), 2 * STEPS) == [0.3] * (2 * STEPS + 1)


def test_an_unknown_schedule_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"scheduler.name=cosin is none of .*did you mean 'cosine'"):
        diffuser(sgd(1.0), STEPS, name="cosin")


def test_a_schedule_that_needs_rules_we_have_no_key_for_is_refused() -> None:
    with pytest.raises(UserError, match=r"scheduler.name=piecewise_constant is none of"):
        diffuser(sgd(1.0), STEPS, name="piecewise_constant")


def groups() -> dict[str, list[nn.Parameter]]:
    return {"policy": [nn.Parameter(torch.zeros(1))], "backbone": [nn.Parameter(torch.zeros(1))], "frozen": []}


def test_options_reach_the_group_of_their_name() -> None:
    merged = merge_options(groups(), {"backbone": {"lr": 0.1}})
    optimizer = torch.optim.SGD(merged, lr=1.0)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("policy", 1.0), ("backbone", 0.1)]


def test_groups_without_parameters_are_left_out() -> None:
    assert [group["name"] for group in merge_options(groups(), {})] == ["policy", "backbone"]


def test_an_unknown_group_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"param_groups.bakbone: .*no parameter group 'bakbone'.*'backbone'"):
        merge_options(groups(), {"bakbone": {"lr": 0.1}})
