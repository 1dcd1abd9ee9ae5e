"""Which values of a file fit which annotations, and how the annotations are told."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
import torch

from robolearn.config.validate import check_targets, describe, matches

Kind = Literal["VISUAL", "STATE"]


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        ([84, 84], Sequence[int] | None, True),
        (None, Sequence[int] | None, True),
        ([84, 0.5], Sequence[int], False),
        ("84", Sequence[str], False),
        ([0.9, 0.999], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        (3, float, True),
        (3.0, int, False),
        (True, int, False),
        (True, float | None, False),
        (True, bool | str, True),
        (1, bool, False),
        ("a", Literal["a", "b"] | None, True),
        ("c", Literal["a", "b"] | None, False),
        ({"VISUAL": "a"}, Mapping[Kind, str], True),
        ({"VISUL": "a"}, Mapping[Kind, str], False),
        (0.1, float | torch.Tensor, True),
        ([1, {"a": None}], Any, True),
    ],
)
def test_conforms(value: Any, annotation: Any, fits: bool) -> None:
    assert matches(value, annotation) is fits


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "a whole number"),
        (float | None, "a number or null"),
        (Sequence[int] | None, "a list of whole numbers or null"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[int, ...], "a list of whole numbers"),
        (Literal["DDPM", "DDIM"], "'DDPM' or 'DDIM'"),
        (Mapping[Kind, str], "a mapping of 'VISUAL' or 'STATE' to texts"),
        (float | torch.Tensor, "a number"),
    ],
)
def test_describe(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_every_difference_is_told() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": "fast", "momentun": 0.9, "params": []}
    messages = check_targets({"optimizer": node}, lambda key: "my.yaml")
    assert messages == [
        "optimizer.lr (my.yaml): SGD takes a number, not 'fast'.",
        "optimizer.momentun (my.yaml): SGD takes no 'momentun' (did you mean 'momentum'?).",
        "optimizer.params (my.yaml): SGD gets 'params' from the run, so remove this key.",
    ]


def test_nodes_within_nodes() -> None:
    inner = {"_target_": "torch.nn.Linear", "in_features": 1}
    (message,) = check_targets({"policy": {"_target_": "torch.nn.Identity", "layers": [inner]}})
    assert (
        message
        == "policy.layers[0].out_features: Linear needs 'out_features'; add +policy.layers[0].out_features=VALUE."
    )
