"""The average of weights that acts."""

import pytest
import torch
from torch import nn

from robolearn.training.ema import Ema


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("count", torch.tensor(0))


def test_the_decay_grows_with_the_updates() -> None:
    model = Model()
    ema, expected = Ema(model, power=0.75), 1.0
    for step in range(1, 6):
        with torch.no_grad():
            model.weight.fill_(10.0 * step)
        ema.update()
        decay = 1 - (1 + step) ** -0.75
        expected = decay * expected + (1 - decay) * 10 * step
        assert ema.model.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_decay_is_bounded() -> None:
    model = Model()
    ema = Ema(model, decay=0.5)
    ema.updates = 10_000
    with torch.no_grad():
        model.weight.fill_(3.0)
    ema.update()
    assert ema.model.weight.item() == pytest.approx(2.0)


def test_buffers_are_copied_not_averaged() -> None:
    model = Model()
    ema = Ema(model)
    model.count.fill_(7)
    ema.update()
    assert ema.model.count.item() == 7


def test_the_average_is_apart_from_the_model() -> None:
    model = Model()
    ema = Ema(model)
    with torch.no_grad():
        model.weight.fill_(5.0)
    assert ema.model.weight.item() == 1.0
    assert not ema.model.weight.requires_grad
    assert not ema.model.training
    assert model.weight.requires_grad


def test_it_goes_on_with_the_count_of_a_saved_one() -> None:
    model = Model()
    whole, first = Ema(model), Ema(model)
    values = [2.0, 5.0, 1.0, 4.0]

    def follow(ema: Ema, values: list[float]) -> None:
        for value in values:
            with torch.no_grad():
                model.weight.fill_(value)
            ema.update()

    follow(whole, values)
    follow(first, values[:2])
    second = Ema(model)
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(first.state_dict())
    follow(second, values[2:])
    assert torch.equal(second.model.weight, whole.model.weight)
