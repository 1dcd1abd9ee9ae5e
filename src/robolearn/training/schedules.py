"""Learning-rate schedules: constant, those of diffusers by name, VQ-BeT's and pi0's."""

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from robolearn.errors import UserError, one_of
from robolearn.types import NonNegative, PositiveFloat, Weight


def constant(optimizer: Optimizer, num_training_steps: int) -> LambdaLR:
    """Every learning rate stays what the optimizer was given."""
    del num_training_steps
    return LambdaLR(optimizer, lambda step: 1.0)


def diffusers_schedule(
    optimizer: Optimizer,
    num_training_steps: int,
    name: str = "cosine",
    num_warmup_steps: NonNegative = 0,
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

    # A piecewise constant rate needs step rules, which no key here gives.
    names = [member.value for member in SchedulerType if member != SchedulerType.PIECEWISE_CONSTANT]
    one_of("scheduler.name", name, names)
    schedule = get_scheduler(name, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps)
    if hold_at_end:
        schedule.lr_lambdas = [_held(factor, num_training_steps) for factor in schedule.lr_lambdas]
    return schedule


def _held(factor: Callable[[int], float], last: int) -> Callable[[int], float]:
    return lambda step: factor(min(step, last))


def vqbet(
    optimizer: Optimizer,
    num_training_steps: int,
    num_warmup_steps: NonNegative,
    num_vqvae_training_steps: NonNegative,
    num_cycles: Weight = 0.5,
    end_at_zero: bool = True,
) -> LambdaLR:
    """Full rate while the tokenizer trains, then a linear warm-up from 0 and a cosine.

    Args:
        optimizer: Its learning rates are scaled.
        num_training_steps: The run's steps, offline and online, those of the tokenizer included.
        num_warmup_steps: Steps of warm-up, after the tokenizer's.
        num_vqvae_training_steps: Steps of the tokenizer.
        num_cycles: Waves of the cosine; 0.5 falls to 0.
        end_at_zero: The cosine ends with the run; false: it is as long as if the tokenizer had taken no steps, so that
            it never reaches 0, as in the reference.
    """
    length = num_training_steps - num_warmup_steps - (num_vqvae_training_steps if end_at_zero else 0)

    def factor(step: int) -> float:
        after = step - num_vqvae_training_steps
        if after < 0:
            return 1.0
        if after < num_warmup_steps:
            return after / num_warmup_steps
        progress = (after - num_warmup_steps) / max(1, length)
        if end_at_zero:
            progress = min(progress, 1.0)
        return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * num_cycles * progress)))

    return LambdaLR(optimizer, factor)


def cosine_decay_with_warmup(
    optimizer: Optimizer,
    num_training_steps: int,
    num_warmup_steps: NonNegative,
    num_decay_steps: NonNegative,
    peak_lr: PositiveFloat,
    decay_lr: Weight,
    decay_after_warmup: bool = True,
) -> LambdaLR:
    """Linear warm-up, then a cosine from the full rate to `decay_lr` / `peak_lr` of it, which then stays.

    Args:
        optimizer: Its learning rates are scaled.
        num_training_steps: The run's steps; the schedule does not depend on them.
        num_warmup_steps: Steps of warm-up, from 1 / (num_warmup_steps + 1) of the rate.
        num_decay_steps: The step at which the cosine ends.
        peak_lr: With `decay_lr` it gives the ratio; the rate itself is the optimizer's.
        decay_lr: See `peak_lr`.
        decay_after_warmup: The cosine starts where the warm-up ends; false: it counts from step 0, so that the rate
            jumps there, as in the reference.

    Raises:
        UserError: `decay_lr` is more than `peak_lr`.
    """
    del num_training_steps
    if decay_lr > peak_lr:
        raise UserError(
            f"scheduler.decay_lr={decay_lr} is more than scheduler.peak_lr={peak_lr}.", key="scheduler.decay_lr"
        )
    floor = decay_lr / peak_lr
    start = num_warmup_steps if decay_after_warmup else 0

    def factor(step: int) -> float:
        if step < num_warmup_steps:
            return (1 + step) / (1 + num_warmup_steps)
        progress = min(max(step - start, 0) / max(1, num_decay_steps - start), 1.0)
        return (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)) + floor

    return LambdaLR(optimizer, factor)
