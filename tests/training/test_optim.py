"""Parameter groups by name."""

import pytest
import torch
from torch import nn

from robolearn.errors import UserError
from robolearn.training.optim import build_param_groups


def groups() -> dict[str, list[nn.Parameter]]:
    return {"policy": [nn.Parameter(torch.zeros(1))], "backbone": [nn.Parameter(torch.zeros(1))], "frozen": []}


def test_options_reach_the_group_of_their_name() -> None:
    merged = build_param_groups(groups(), {"backbone": {"lr": 0.1}})
    optimizer = torch.optim.SGD(merged, lr=1.0)
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("policy", 1.0), ("backbone", 0.1)]


def test_groups_without_parameters_are_left_out() -> None:
    assert [group["name"] for group in build_param_groups(groups(), {})] == ["policy", "backbone"]


def test_an_unknown_group_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"param_groups.bakbone: .*no parameter group 'bakbone'.*'backbone'"):
        build_param_groups(groups(), {"bakbone": {"lr": 0.1}})
