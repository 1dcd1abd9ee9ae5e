"""The registry of what a checkpoint holds: nothing is forgotten, and nothing is restored by halves."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.training import CountingCollector, Line, trained, trainer
from torch import nn

from robolearn.errors import UserError
from robolearn.training.state import Stateful, TrainState


class Counter:
    """A part that counts."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.count = state["count"]


@pytest.mark.parametrize("options", [{}, {"ema": True}, {"collector": CountingCollector()}])
def test_every_stateful_part_of_a_run_is_registered(tmp_path: Path, options: dict[str, Any]) -> None:
    made = trainer(tmp_path, **options)
    owners = [made, made.update, *made.phases]
    found = {id(value): name for owner in owners for name, value in vars(owner).items() if isinstance(value, Stateful)}
    weights = {id(value) for value in vars(made.update).values() if isinstance(value, nn.Module)}
    registered = {id(part) for part in made.state.parts.values()} | weights | {id(made.state)}
    assert {name for key, name in found.items() if key not in registered} == set()
    assert {"optimizer", "schedule", "scaler", "metrics", "rng"} <= set(found.values())


def test_parts_are_restored_by_name() -> None:
    saved = TrainState({"one": Counter(1), "two": Counter(2)}).state_dict()
    one, two = Counter(), Counter()
    TrainState({"two": two, "one": one}).load_state_dict(saved)
    assert (one.count, two.count) == (1, 2)


@pytest.mark.parametrize(("saved", "own", "key"), [("ab", "a", "b"), ("a", "ab", "b"), ("c", "a", "a")])
def test_a_part_that_only_the_checkpoint_or_only_the_run_has_is_refused(saved: str, own: str, key: str) -> None:
    parts = {name: Counter() for name in own}
    with pytest.raises(UserError) as caught:
        TrainState(parts).load_state_dict({name: {"count": 1} for name in saved})
    assert caught.value.key == key
    assert all(part.count == 0 for part in parts.values())


def test_a_part_that_may_be_new_is_left_as_it_is() -> None:
    part = Counter(5)
    TrainState({"a": Counter(), "b": part}, may_be_new=["b"]).load_state_dict({"a": {"count": 1}})
    assert part.count == 5


def test_a_run_with_another_set_of_parts_does_not_resume(tmp_path: Path) -> None:
    trained(tmp_path, steps=4, ema=True)
    with pytest.raises(UserError) as caught:
        trained(tmp_path, steps=8, policy=Line())
    assert caught.value.key == "ema"


def test_a_resumed_run_may_be_given_its_online_phase(tmp_path: Path) -> None:
    trained(tmp_path, steps=4)
    collector = CountingCollector()
    made = trained(tmp_path, steps=8, collector=collector)
    assert made.step == 8
    assert collector.collected == [4, 5, 6, 7]
    state = torch.load(tmp_path / "checkpoints/last/state.pt", weights_only=True)
    assert state["collector"] == {"collected": [4, 5, 6, 7]}
