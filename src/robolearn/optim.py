"""Parameter groups by name, and learning-rate schedules."""

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robolearn.errors import UserError


def merge_options(
    groups: Mapping[str, list[nn.Parameter]], options: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, with the options the user gave some of them by name.

    Args:
        groups: What `Policy.param_groups` names.
        options: Optimizer options such as ``lr`` by group name.

    Raises:
        UserError: An option is given for a group the policy does not have.
    """
    for name in options:
        if name not in groups:
            nearest = difflib.get_close_matches(name, groups, n=1, cutoff=0)[0]
            raise UserError(
                f"param_groups.{name}: the policy has no parameter group '{name}' (did you mean '{nearest}'?)."
            )
    return [{"name": name, "params": params, **options.get(name, {})} for name, params in groups.items() if params]


def constant(optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
    """Every learning rate stays what the optimizer was given."""
    del num_training_steps
    return LambdaLR(optimizer, lambda step: 1.0)


def diffuser(
    optimizer: Optimizer,
    num_training_steps: int,
    name: str = "cosine",
    num_warmup_steps: int = 0,
    hold_at_end: bool = True,
) -> LambdaLR:
    """A schedule of `diffusers.optimization.get_scheduler` by name.

    Args:
        optimizer: Its learning rates are scaled.
        num_training_steps: The run's steps, offline and online.
        name: "cosine", "linear", "constant_with_warmup", ...
        num_warmup_steps: Steps of linear warm-up from 0.
        hold_at_end: Beyond the last step the rate stays what it was there; false: the cosine rises again, as in the
            reference.

    Raises:
        UserError: diffusers has no schedule of that name.
    """
    from diffusers.optimization import SchedulerType, get_scheduler

    # A piecewise constant rate is told by rules, which no key here gives.
    names = [member.value for member in SchedulerType if member != SchedulerType.PIECEWISE_CONSTANT]
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
        raise UserError(f"scheduler.name={name} is none of {', '.join(names)} (did you mean '{nearest}'?).")
    schedule = get_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps)
    if hold_at_end:
        schedule.lr_lambdas = [_held(factor, num_training_steps) for factor in schedule.lr_lambdas]
    return schedule


def _held(factor: Callable[[int], float], last: int) -> Callable[[int], float]:
    return lambda step: factor(min(step, last))
