"""TD-MPC in LeRobot."""

import logging
from collections.abc import Mapping
from typing import Any

from robolearn.checkpoints.lerobot.interop import Interop

log = logging.getLogger(__name__)

NAMES = [
    ("^model_target.", "^target."),
    ("._encoder.image_enc_layers.", ".encoder.image."),
    ("._encoder.state_enc_layers.", ".encoder.state."),
    ("._encoder.env_state_enc_layers.", ".encoder.environment."),
    *((f"._{part}.", f".{part}.") for part in ("dynamics", "reward", "pi")),
    ("._Qs.", ".qs."),
    ("._V.", ".v."),
]


def check_export(options: Mapping[str, Any]) -> None:
    """LeRobot's planner always shifts its last mean by one action."""
    if (shift := options.get("warm_start_shift")) != 1:
        log.warning("policy.warm_start_shift=%s: LeRobot's planner does as with 1.", shift)


# LeRobot reuses the last plan as if one action had been executed, and its minima over two of the action values may
# take the same one twice.
REFERENCE = {"q_draws_with_replacement": True, "warm_start_shift": 1}

INTEROP = Interop(
    names=NAMES,
    type_marker="cem_iterations",
    optimizer="adam",
    optimizer_keys=("lr",),
    reference=dict(REFERENCE),
    inference_overrides=dict(REFERENCE),
    own_keys=frozenset(REFERENCE),
    check_export=check_export,
)
