"""ACT in LeRobot."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robolearn.checkpoints.lerobot.interop import Interop

if TYPE_CHECKING:
    from torch import Tensor

    from robolearn.policies.act import ActPolicy

NAMES = [
    ("^model.", "^"),
    ("^vae_encoder_cls_embed.weight$", "^vae.cls$"),
    ("^vae_encoder_robot_state_input_proj.", "^vae.state_proj."),
    ("^vae_encoder_action_input_proj.", "^vae.action_proj."),
    ("^vae_encoder_latent_output_proj.", "^vae.head."),
    ("^vae_encoder.", "^vae.encoder."),
    ("^backbone.conv1.", "^backbone.0."),
    ("^backbone.bn1.", "^backbone.1."),
    *((f"^backbone.layer{i}.", f"^backbone.{i + 3}.") for i in range(1, 5)),
    ("^encoder_latent_input_proj.", "^latent_proj."),
    ("^encoder_robot_state_input_proj.", "^state_proj."),
    ("^encoder_env_state_input_proj.", "^environment_proj."),
    ("^encoder_img_feat_input_proj.", "^image_proj."),
    ("^encoder_1d_feature_pos_embed.weight$", "^vector_positions$"),
    ("^decoder_pos_embed.weight$", "^queries$"),
    ("^action_head.", "^head."),
    ("coder.layers.#.self_attn.", "coder.layers.#.self_attention."),
    ("coder.layers.#.multihead_attn.", "coder.layers.#.cross_attention."),
    ("coder.layers.#.linear1.", "coder.layers.#.feedforward.0."),
    ("coder.layers.#.linear2.", "coder.layers.#.feedforward.3."),
    *((f"coder.layers.#.norm{i}.", f"coder.layers.#.residuals.{i - 1}.norm.") for i in range(1, 4)),
]


def constants(policy: "ActPolicy", options: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The positions of the VAE's encoder, which are computed here."""
    if policy.vae is None:
        return {}
    return {"model.vae_encoder_pos_enc": policy.vae.get_buffer("positions").unsqueeze(0)}


INTEROP = Interop(
    names=NAMES,
    type_marker="n_vae_encoder_layers",
    optimizer="adamw",
    optimizer_keys=("lr", "weight_decay"),
    param_group_fields={"optimizer_lr_backbone": ("backbone", "lr")},
    reference={"average_over_padding": True},
    own_keys=frozenset({"average_over_padding"}),
    constant_names=r"^model\.vae_encoder_pos_enc$",
    constants=constants,
)
