"""Parameter groups by name, and optimizers whose step a CUDA graph can hold."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from robolearn.errors import UserError, did_you_mean


def build_param_groups(
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
            hint = did_you_mean(name, groups, cutoff=0)
            raise UserError(
                f"param_groups.{name}: the policy has no parameter group '{name}'{hint}.", key=f"param_groups.{name}"
            )
    return [{"name": name, "params": params, **options.get(name, {})} for name, params in groups.items() if params]


def is_capturable(optimizer: Optimizer) -> bool:
    """Whether a CUDA graph can hold this optimizer's step."""
    return all("capturable" in group or group.get("fused") for group in optimizer.param_groups)


def make_capturable(optimizer: Optimizer, device: torch.device) -> None:
    """Keep on the device what an optimizer's step reads, so that a captured step follows the learning rate.

    Its state dict stays what it would be otherwise, so that a run may be resumed with or without captured steps.
    """
    _to_device(optimizer, device)
    optimizer.register_load_state_dict_post_hook(lambda loaded: _to_device(loaded, device))
    optimizer.register_state_dict_post_hook(lambda _, state: _without_capture(state))


def _to_device(optimizer: Optimizer, device: torch.device) -> None:
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        if not isinstance(group["lr"], Tensor) or group["lr"].device != device:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = state["step"].to(device)


def _without_capture(state: dict[str, Any]) -> dict[str, Any]:
    groups = []
    for group in state["param_groups"]:
        plain = {key: float(value) if isinstance(value, Tensor) else value for key, value in group.items()}
        groups.append(plain | ({"capturable": False} if "capturable" in plain else {}))
    return {**state, "param_groups": groups}
