"""Diffusion Policy in LeRobot."""

from collections.abc import Mapping
from typing import Any

from robolearn.checkpoints.lerobot.interop import Interop, Names
from robolearn.errors import UserError

SHARED_ENCODER = ("^diffusion.rgb_encoder.", "^encoders.0.")
NAMES = [
    ("^diffusion.rgb_encoder.#.", "^encoders.#."),
    SHARED_ENCODER,
    (".pool.nets.", ".pool.keypoints."),
    ("^encoders.#.out.", "^encoders.#.head."),
    ("^diffusion.unet.", "^unet."),
    ("^unet.diffusion_step_encoder.", "^unet.step_embedding."),
    *((f"^unet.{part}_modules.", f"^unet.{part}.") for part in ("down", "mid", "up")),
    (".conv1.block.#.", ".conv1.#."),
    (".conv2.block.#.", ".conv2.#."),
    (".cond_encoder.", ".film."),
    (".residual_conv.", ".skip."),
    ("^unet.final_conv.0.block.", "^unet.final.0."),
    ("^unet.final_conv.1.", "^unet.final.1."),
]
FINAL_N_GROUPS = 8


def export_names(options: Mapping[str, Any]) -> Names:
    """One encoder for all cameras has no index in LeRobot; one of several has, also where there is one camera."""
    separate = options.get("use_separate_rgb_encoder_per_camera")
    return [pair for pair in NAMES if pair != SHARED_ENCODER] if separate else NAMES


def check_export(options: Mapping[str, Any]) -> None:
    """LeRobot's last GroupNorm has 8 groups, whatever ``n_groups`` says."""
    if (groups := options.get("final_n_groups") or options.get("n_groups")) != FINAL_N_GROUPS:
        raise UserError(
            f"policy.final_n_groups={groups}: LeRobot always has {FINAL_N_GROUPS} groups there; it has no such policy.",
            key="policy.final_n_groups",
        )


INTEROP = Interop(
    names=NAMES,
    type_marker="down_dims",
    optimizer="adam",
    optimizer_keys=("lr", "betas", "eps", "weight_decay"),
    scheduler="diffusers",
    scheduler_keys={"scheduler_name": "name", "scheduler_warmup_steps": "num_warmup_steps"},
    reference={"crop_per_sample": False, "average_over_padding": True, "final_n_groups": FINAL_N_GROUPS},
    inference_overrides={"final_n_groups": FINAL_N_GROUPS},
    own_keys=frozenset({"crop_per_sample", "average_over_padding", "final_n_groups", "noise_samples_per_observation"}),
    ignored_fields=frozenset({"crop_ratio"}),
    constant_names=r"\.pool\.pos_grid$",
    export_names=export_names,
    check_export=check_export,
)
