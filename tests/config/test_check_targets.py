"""Which values of a file fit which annotations, and how the annotations are described."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pytest
import torch
from annotated_types import Ge, Gt, Interval
from omegaconf import OmegaConf

from robolearn.config.schema import TrainConfig
from robolearn.config.validate import check_roots, check_targets, check_value, describe, refuse
from robolearn.errors import UserError

Kind = Literal["VISUAL", "STATE"]


class Unfit(Protocol):
    """What Pydantic knows nothing of."""

    def method(self) -> None: ...


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
        ([[1, 2], [3, 4]], list[tuple[int, int]], True),
        ("cuda", torch.device | str, True),
        ("a/b", Path | None, True),
        ("anything", Unfit, True),
        (1, Annotated[int, Ge(1)], True),
        (0, Annotated[int, Ge(1)], False),
        (None, Annotated[float, Gt(0)] | None, True),
        (float("nan"), Annotated[float, Ge(0)], False),
        (1, Annotated[float, Interval(ge=0, le=1)], True),
        (1.5, Annotated[float, Interval(ge=0, le=1)], False),
        ([1, 0], Sequence[Annotated[int, Ge(1)]], False),
    ],
)
def test_fits(value: Any, annotation: Any, fits: bool) -> None:
    assert (check_value("key", value, annotation) is None) is fits


@pytest.mark.parametrize(
    ("value", "annotation", "words"),
    [
        (0, Annotated[int, Ge(1)], "policy.x=0 (my.yaml) must be at least 1."),
        (0, Annotated[float, Gt(0)] | None, "policy.x=0 (my.yaml) must be greater than 0, or null."),
        (2, Annotated[float, Interval(ge=0, le=1)], "policy.x=2 (my.yaml) must be at most 1."),
        ([8, 0], Sequence[Annotated[int, Ge(1)]] | None, "policy.x[1]=0 (my.yaml) must be at least 1."),
        ({"a": -1}, Mapping[str, Annotated[int, Ge(0)]], "policy.x.a=-1 (my.yaml) must be at least 0."),
        (0, Annotated[int, Ge(1)] | str, "policy.x=0 (my.yaml) must be at least 1."),
        (3, Sequence[int] | None, "policy.x (my.yaml): Act takes a list of integers or null, not 3."),
        (None, Annotated[int, Ge(1)], "policy.x (my.yaml): Act takes an integer, not null."),
        ("abb", Literal["ab"], "policy.x (my.yaml): Act takes 'ab', not 'abb' (did you mean 'ab'?)."),
    ],
)  # fmt: skip
def test_sentences(value: Any, annotation: Any, words: str) -> None:
    assert str(check_value("policy.x", value, annotation, "Act", lambda key: "my.yaml")) == words


def test_root_keys() -> None:
    errors = check_roots(TrainConfig, {"seed": -1, "resume": "mus", "grad_clip_norm": None, "batch_size": 1})
    assert [error.key for error in errors] == ["seed", "resume"]
    assert str(errors[1]) == "resume takes 'auto' or 'must' or 'never', not 'mus' (did you mean 'must'?)."
    with pytest.raises(UserError, match=r"seed=-1 must be at least 0 \(and 1 more: resume\)\.") as refusal:
        refuse(errors)
    assert refusal.value.key == "seed"


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (Sequence[int] | None, "a list of integers or null"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[int, ...], "a list of integers"),
        (Literal["DDPM", "DDIM"], "'DDPM' or 'DDIM'"),
        (Mapping[Kind, str], "a mapping of 'VISUAL' or 'STATE' to strings"),
        (float | torch.Tensor, "a number"),
    ],
)
def test_describe(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


def test_every_difference_is_reported() -> None:
    node = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": "fast", "momentun": 0.9, "params": []}
    errors = check_targets({"optimizer": node}, lambda key: "my.yaml")
    assert [error.key for error in errors] == ["optimizer.lr", "optimizer.momentun", "optimizer.params"]
    assert [str(error) for error in errors] == [
        "optimizer.lr (my.yaml): SGD takes a number, not 'fast'.",
        "optimizer.momentun (my.yaml): SGD takes no 'momentun' (did you mean 'momentum'?).",
        "optimizer.params (my.yaml): SGD gets 'params' from the run, so remove this key.",
    ]


RANGES = {
    "checkpoints": ("robolearn.checkpoints.store.Checkpoints", {"keep_last": 0, "keep_best": -1}),
    "dataset": ("robolearn.data.LeRobotDataset", {"tolerance_s": 0, "max_gpu_gb": -1.0}),
    "ema": ("robolearn.training.ema.Ema", {"decay": 1.5, "power": 0}),
    "env": ("robolearn.envs.PushT", {"fps": 0, "episode_length": 0, "observation_width": 0}),
    "eval": ("robolearn.rollouts.evaluation.Evaluator", {"n_episodes": 0, "batch_size": 0, "seed": -1, "n_videos": -1}),
    "image_transforms": ("robolearn.data.augment.ImageTransforms", {"max_num_transforms": -1}),
    "online": ("robolearn.training.online.Online", {"steps": -1, "sampling_ratio": 1.5, "rollout_n_episodes": 0}),
    "scheduler": ("robolearn.training.schedules.diffusers_schedule", {"num_warmup_steps": -1}),
}


@pytest.mark.parametrize("group", RANGES)
def test_ranges_of_our_own(group: str) -> None:
    target, values = RANGES[group]
    node = {"_target_": target, "_partial_": True}
    assert [error.key for error in check_targets({group: node | values})] == [f"{group}.{key}" for key in values]


def test_what_a_checkpoint_says_is_checked_too() -> None:
    from robolearn.config.build import build

    node = {"_target_": "robolearn.training.online.Online", "steps": 9, "env_seed": -1}
    with pytest.raises(UserError, match=r"^online\.env_seed=-1 must be at least 0, or null\.$") as refusal:
        build("online", OmegaConf.create({"online": node}))
    assert refusal.value.key == "online.env_seed"


def test_nodes_within_nodes() -> None:
    inner = {"_target_": "torch.nn.Linear", "in_features": 1}
    (error,) = check_targets({"policy": {"_target_": "torch.nn.Identity", "layers": [inner]}})
    assert (
        str(error)
        == "policy.layers[0].out_features: Linear needs 'out_features'; add +policy.layers[0].out_features=VALUE."
    )
