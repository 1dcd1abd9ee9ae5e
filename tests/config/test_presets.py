"""What each policy brings along: optimizer, parameter groups and schedule with the reference's numbers."""

import functools
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch.optim import SGD, Adam, AdamW

from robolearn.config.build import build, build_policy, plain, total_steps
from robolearn.config.compose import compose, parse
from robolearn.training.optim import build_param_groups
from robolearn.types import Feature, Spec

SPEC = Spec(
    {"observation.image": Feature("VISUAL", (3, 96, 96)), "observation.state": Feature("STATE", (2,))},
    Feature("ACTION", (2,)),
    10.0,
)


@functools.cache
def composed(*overrides: str) -> DictConfig:
    (job,) = compose(parse(overrides, "train"), "train")
    return job.cfg


def optimizer_of(*overrides: str) -> torch.optim.Optimizer:
    """What a run's optimizer is, over weights without memory."""
    cfg = composed(*overrides)
    with torch.device("meta"):
        policy = build_policy(cfg, SPEC)
    return build("optimizer", cfg, build_param_groups(policy.param_groups(), plain(cfg)["param_groups"]))


def groups_of(optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    """Rate and weight decay by group."""
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}


PRESETS: dict[str, tuple[Any, dict[str, tuple[float, float]], tuple[float, float]]] = {
    "act": (AdamW, {"policy": (1e-5, 1e-4), "backbone": (1e-5, 1e-4)}, (0.9, 0.999)),
    "diffusion": (Adam, {"policy": (1e-4, 1e-6)}, (0.95, 0.999)),
    "tdmpc": (Adam, {"policy": (3e-4, 0.0)}, (0.9, 0.999)),
    "vqbet": (Adam, {"decay": (1e-4, 1e-6), "no_decay": (1e-4, 0.0), "tokenizer": (1e-3, 1e-4)}, (0.95, 0.999)),
}


@pytest.mark.parametrize("policy", PRESETS)
def test_optimizer_of_a_policy(policy: str) -> None:
    kind, groups, betas = PRESETS[policy]
    optimizer = optimizer_of(f"policy={policy}")
    assert type(optimizer) is kind
    assert groups_of(optimizer) == groups
    assert all((tuple(group["betas"]), group["eps"]) == (betas, 1e-8) for group in optimizer.param_groups)
    assert composed(f"policy={policy}").grad_clip_norm == 10.0


@pytest.mark.parametrize("policy", PRESETS)
def test_every_parameter_is_in_one_group(policy: str) -> None:
    with torch.device("meta"):
        made = build_policy(composed(f"policy={policy}"), SPEC)
    listed = [id(p) for parameters in made.param_groups().values() for p in parameters]
    assert len(listed) == len(set(listed))
    trained = {id(p) for name, p in made.named_parameters() if p.requires_grad or policy == "vqbet"}
    assert set(listed) == trained


OPTIMIZERS = {
    "adam": (Adam, {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}),
    "adamw": (AdamW, {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}),
    "sgd": (SGD, {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_is_chosen_brings_its_own_numbers(name: str) -> None:
    kind, numbers = OPTIMIZERS[name]
    optimizer = optimizer_of("policy=act", f"optimizer={name}")
    assert type(optimizer) is kind
    assert {group["name"] for group in optimizer.param_groups} == {"policy", "backbone"}
    for group in optimizer.param_groups:
        assert {key: list(group[key]) if key == "betas" else group[key] for key in numbers} == numbers


def test_a_group_of_parameters_has_its_own_options() -> None:
    optimizer = optimizer_of("policy=act", "optimizer=sgd", "+param_groups.backbone={lr: 0.5, momentum: 0.9}")
    assert [(g["name"], g["lr"], g["momentum"]) for g in optimizer.param_groups] == [
        ("policy", 1e-3, 0.0),
        ("backbone", 0.5, 0.9),
    ]


def rates(*overrides: str, at: list[int]) -> list[float]:
    """The rate of each of these updates, as a share of the optimizer's."""
    cfg = composed(*overrides)
    optimizer = build("optimizer", cfg, [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": "policy"}])
    schedule = build("scheduler", cfg, optimizer, num_training_steps=total_steps(cfg))
    (factor,) = schedule.lr_lambdas
    return [factor(step) for step in at]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("act", {0: 1.0, 100_000: 1.0}),
        ("diffusion", {0: 0.0, 250: 0.5, 500: 1.0, 50_250: 0.5, 100_000: 0.0, 150_000: 0.0}),
        ("tdmpc", {0: 1.0, 100_000: 1.0}),
        ("vqbet", {0: 1.0, 19_999: 1.0, 20_000: 0.0, 20_250: 0.5, 20_500: 1.0, 60_250: 0.5, 100_000: 0.0}),
    ],
)
def test_schedule_of_a_policy(policy: str, expected: dict[int, float]) -> None:
    assert rates(f"policy={policy}", at=list(expected)) == pytest.approx(list(expected.values()), abs=1e-9)


def test_the_schedule_is_as_long_as_both_phases() -> None:
    both = ["policy=diffusion", "scheduler=diffusers", "offline.steps=60", "online.steps=40"]
    assert total_steps(composed(*both)) == 100
    assert rates(*both, at=[50, 60, 100]) == pytest.approx([0.5, 0.3454915, 0.0], abs=1e-7)
