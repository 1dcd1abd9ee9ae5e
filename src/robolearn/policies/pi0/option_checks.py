"""Rules between the options of pi0, and between them and the dataset's features."""

from collections.abc import Mapping, Sequence

from robolearn.errors import UserError, did_you_mean
from robolearn.normalize import NormalizationMode
from robolearn.types import Kind, Spec

SHARED = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")


def check_frozen(freeze_vision_encoder: bool, train_expert_only: bool) -> None:
    """Training the expert only freezes the vision encoder, too.

    Raises:
        UserError: The options contradict each other.
    """
    if train_expert_only and not freeze_vision_encoder:
        raise UserError(
            "policy.train_expert_only=true leaves SigLIP as it is, too, which policy.freeze_vision_encoder=false "
            "contradicts",
            key="policy.train_expert_only",
            fix="change one of them",
        )


def check_features(
    spec: Spec, max_state_dim: int, max_action_dim: int, mapping: Mapping[Kind, NormalizationMode]
) -> None:
    """State and action are vectors that fit; images are not normalised.

    Raises:
        UserError: They are not.
    """
    if not spec.observation:
        raise UserError("policy=pi0 needs a camera or a state; the dataset has no observation.", key="policy")
    for key, feature in {**spec.observation, "action": spec.action}.items():
        if feature.kind != "VISUAL" and len(feature.shape) != 1:
            raise UserError(
                f"policy=pi0 needs vectors and images, {key} has shape {feature.shape}",
                key=key,
                fix=f"set dataset.exclude=[{key}]",
            )
    state_dim = sum(f.shape[0] for kind in ("STATE", "ENV") for f in spec.of_kind(kind).values())
    for name, largest, dim in (
        ("state", max_state_dim, state_dim),
        ("action", max_action_dim, spec.action.shape[0]),
    ):
        if dim > largest:
            raise UserError(
                f"policy.max_{name}_dim={largest} is less than the {dim} numbers of the dataset's {name}",
                key=f"policy.max_{name}_dim",
                fix="raise it",
            )
    if (mode := mapping.get("VISUAL", "IDENTITY")) != "IDENTITY":
        raise UserError(
            f"policy.normalization_mapping.VISUAL={mode} must be IDENTITY, because SigLIP sees pixels in [-1, 1].",
            key="policy.normalization_mapping.VISUAL",
        )


def check_images(spec: Spec, resize: Sequence[int] | None, size: int) -> None:
    """Images have 3 channels and, resized or not, the size that the vision encoder takes.

    Args:
        spec: Features of the dataset.
        resize: (width, height) that images are resized to, or None.
        size: Height and width that the vision encoder takes.

    Raises:
        UserError: They do not.
    """
    if resize is not None and list(resize) != [size, size]:
        raise UserError(
            f"policy.resize_imgs_with_padding={list(resize)} must be [{size},{size}], the image size of the vision "
            "encoder (policy.vision), or null.",
            key="policy.resize_imgs_with_padding",
        )
    for key, feature in spec.of_kind("VISUAL").items():
        if feature.shape[0] != 3:
            raise UserError(
                f"policy=pi0 needs images of 3 channels, {key} has {feature.shape[0]}",
                key=key,
                fix=f"set dataset.exclude=[{key}]",
            )
        if resize is None and feature.shape[1:] != (size, size):
            raise UserError(
                f"{key} has {feature.shape[1]} x {feature.shape[2]} pixels, the vision encoder takes {size} x {size}",
                key="policy.resize_imgs_with_padding",
                fix=f"set policy.resize_imgs_with_padding=[{size},{size}]",
            )


def network_sizes(
    vision: Mapping[str, int] | None,
    language: Mapping[str, int] | None,
    expert: Mapping[str, int] | None,
    proj_width: int,
    published: Mapping[str, Mapping[str, int]],
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """The sizes of the vision encoder, the language model and the expert, those given in place of those published.

    The expert's layers attend to the language model's keys and values, so its heads are the language model's.

    Args:
        vision: Sizes that differ from the published ones, by transformers' names.
        language: Likewise.
        expert: Likewise.
        proj_width: Width of the expert.
        published: The published sizes of ``vision``, ``language`` and ``expert``.

    Raises:
        UserError: A name is unknown, or the sizes do not fit each other.
    """
    vision_sizes = _merged("vision", vision, published["vision"])
    language_sizes = _merged("language", language, published["language"])
    heads = {key: language_sizes[key] for key in SHARED}
    expert_sizes = _merged("expert", expert, {**heads, **published["expert"], "hidden_size": proj_width})
    for key in SHARED:
        if expert_sizes[key] != language_sizes[key]:
            raise UserError(
                f"policy.expert.{key}={expert_sizes[key]} must be {language_sizes[key]}, that of policy.language, "
                "because the expert's layers attend to the language model's.",
                key=f"policy.expert.{key}",
            )
    if expert_sizes["hidden_size"] != proj_width:
        raise UserError(
            f"policy.expert.hidden_size={expert_sizes['hidden_size']} must be policy.proj_width={proj_width}.",
            key="policy.expert.hidden_size",
        )
    _check_multiple("language", language_sizes, "num_attention_heads", "num_key_value_heads")
    _check_multiple("vision", vision_sizes, "hidden_size", "num_attention_heads")
    if language_sizes["head_dim"] % 2:
        raise UserError(
            f"policy.language.head_dim={language_sizes['head_dim']} must be even, for rotary positions.",
            key="policy.language.head_dim",
        )
    if vision_sizes["image_size"] < vision_sizes["patch_size"]:
        raise UserError(
            f"policy.vision.image_size={vision_sizes['image_size']} must be at least policy.vision.patch_size="
            f"{vision_sizes['patch_size']}.",
            key="policy.vision.image_size",
        )
    return vision_sizes, language_sizes, expert_sizes


def _check_multiple(name: str, sizes: Mapping[str, int], key: str, divisor: str) -> None:
    if sizes[key] % sizes[divisor]:
        raise UserError(
            f"policy.{name}.{key}={sizes[key]} must be a multiple of policy.{name}.{divisor}={sizes[divisor]}.",
            key=f"policy.{name}.{key}",
        )


def _merged(name: str, given: Mapping[str, int] | None, published: Mapping[str, int]) -> dict[str, int]:
    for key in given or {}:
        if key not in published:
            raise UserError(
                f"policy.{name}.{key}: there is no such size, only {', '.join(published)}"
                f"{did_you_mean(key, published)}.",
                key=f"policy.{name}.{key}",
            )
    return {**published, **(given or {})}
