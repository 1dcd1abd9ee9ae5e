"""Rules between the options of pi0, each answered in one sentence."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from robolearn.errors import UserError, did_you_mean, one_of
from robolearn.normalize import Mode
from robolearn.types import Kind, Spec

SHARED = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def lengths(n_obs_steps: int, chunk_size: int, n_action_steps: int) -> None:
    """Frames and actions."""
    if n_obs_steps != 1:
        raise UserError(f"policy.n_obs_steps={n_obs_steps} must be 1, because pi0 acts on the newest frame alone.")
    at_least(1, chunk_size=chunk_size, n_action_steps=n_action_steps)
    if n_action_steps > chunk_size:
        raise UserError(
            f"policy.n_action_steps={n_action_steps} is more than the policy.chunk_size={chunk_size} actions "
            "predicted; lower it or raise policy.chunk_size."
        )


def at_least(least: int, **values: int) -> None:
    """Options with a smallest value."""
    for name, value in values.items():
        if value < least:
            raise UserError(f"policy.{name}={value} must be at least {least}.")


def choice(name: str, value: str, choices: Collection[str]) -> None:
    """Options of which there are a few."""
    one_of(f"policy.{name}", value, choices)


def frozen(freeze_vision_encoder: bool, train_expert_only: bool) -> None:
    """What is trained."""
    if train_expert_only and not freeze_vision_encoder:
        raise UserError(
            "policy.train_expert_only=true leaves SigLIP as it is, too, which policy.freeze_vision_encoder=false "
            "contradicts; change one of them."
        )


def features(spec: Spec, max_state_dim: int, max_action_dim: int, mapping: Mapping[Kind, Mode]) -> None:
    """What is observed and commanded."""
    if not spec.observation:
        raise UserError("policy=pi0 needs a camera or a state; the dataset has no observation.")
    for key, feature in {**spec.observation, "action": spec.action}.items():
        if feature.kind != "VISUAL" and len(feature.shape) != 1:
            raise UserError(
                f"policy=pi0 needs vectors and images, {key} has shape {feature.shape}; set dataset.exclude=[{key}]."
            )
    state = sum(f.shape[0] for kind in ("STATE", "ENV") for f in spec.of_kind(kind).values())
    for name, most, found in (
        ("state", max_state_dim, state),
        ("action", max_action_dim, spec.action.shape[0]),
    ):
        if found > most:
            raise UserError(
                f"policy.max_{name}_dim={most} is less than the {found} numbers of the dataset's {name}; raise it."
            )
    if (mode := mapping.get("VISUAL", "IDENTITY")) != "IDENTITY":
        raise UserError(
            f"policy.normalization_mapping.VISUAL={mode} must be IDENTITY, because SigLIP sees pixels in [-1, 1]."
        )


def images(spec: Spec, resize: Sequence[int] | None, size: int) -> None:
    """Sizes of images."""
    if resize is not None and list(resize) != [size, size]:
        raise UserError(
            f"policy.resize_imgs_with_padding={list(resize)} must be [{size},{size}], the image size of the vision "
            "encoder (policy.vision), or null."
        )
    for key, feature in spec.of_kind("VISUAL").items():
        if feature.shape[0] != 3:
            raise UserError(
                f"policy=pi0 needs images of 3 channels, {key} has {feature.shape[0]}; set dataset.exclude=[{key}]."
            )
        if resize is None and feature.shape[1:] != (size, size):
            raise UserError(
                f"{key} has {feature.shape[1]} x {feature.shape[2]} pixels, the vision encoder takes {size} x {size}; "
                f"set policy.resize_imgs_with_padding=[{size},{size}]."
            )


def sizes(
    vision: Mapping[str, Any] | None,
    language: Mapping[str, Any] | None,
    expert: Mapping[str, Any] | None,
    proj_width: int,
    published_vision: Mapping[str, Any],
    published_language: Mapping[str, Any],
    published_expert: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The sizes of the three networks, those given in place of those published.

    The expert's layers look at the language model's, so these must have equal heads; the expert has them from it.
    """
    seeing, reading = _merged("vision", vision, published_vision), _merged("language", language, published_language)
    at_least(1, proj_width=proj_width)
    base = {**{key: reading[key] for key in SHARED}, **published_expert, "hidden_size": proj_width}
    acting = _merged("expert", expert, base)
    for key in SHARED:
        if acting[key] != reading[key]:
            raise UserError(
                f"policy.expert.{key}={acting[key]} must be {reading[key]}, that of policy.language, because the "
                "expert's layers look at the language model's."
            )
    if acting["hidden_size"] != proj_width:
        raise UserError(f"policy.expert.hidden_size={acting['hidden_size']} must be policy.proj_width={proj_width}.")
    if proj_width % 2:
        raise UserError(f"policy.proj_width={proj_width} must be even, for the embedding of times.")
    if reading["num_attention_heads"] % reading["num_key_value_heads"]:
        raise UserError(
            f"policy.language.num_attention_heads={reading['num_attention_heads']} must be a multiple of "
            f"policy.language.num_key_value_heads={reading['num_key_value_heads']}."
        )
    if reading["head_dim"] % 2:
        raise UserError(f"policy.language.head_dim={reading['head_dim']} must be even, for rotary positions.")
    if seeing["hidden_size"] % seeing["num_attention_heads"]:
        raise UserError(
            f"policy.vision.hidden_size={seeing['hidden_size']} must be a multiple of "
            f"policy.vision.num_attention_heads={seeing['num_attention_heads']}."
        )
    if seeing["image_size"] < seeing["patch_size"]:
        raise UserError(
            f"policy.vision.image_size={seeing['image_size']} must be at least policy.vision.patch_size="
            f"{seeing['patch_size']}."
        )
    return seeing, reading, acting


def _merged(name: str, given: Mapping[str, Any] | None, published: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in (given or {}).items():
        if key not in published:
            meant = did_you_mean(key, published)
            raise UserError(f"policy.{name}.{key}: there is no such size, only {', '.join(published)}{meant}.")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"policy.{name}.{key}={value} must be a whole number, at least 1.")
    return {**published, **(given or {})}
