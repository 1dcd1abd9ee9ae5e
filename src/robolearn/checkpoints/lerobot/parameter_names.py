"""LeRobot's parameter names in our terms and back, a table for each policy."""

import re
from collections.abc import Callable
from functools import cache

# Pairs (LeRobot's, ours) that are replaced one after the other, and the other way round from the last to the first.
# "^" and "$" are the ends of a name, "#" is a number; everything else stands for itself.
ACT_NAMES = [
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

# One encoder for all cameras has no number at LeRobot.
SHARED_ENCODER = ("^diffusion.rgb_encoder.", "^encoders.0.")
DIFFUSION_NAMES = [
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

PI0_NAMES = [
    ("^model.", "^"),
    ("^paligemma_with_expert.paligemma.vision_tower.vision_model.", "^paligemma.vision."),
    ("^paligemma_with_expert.paligemma.multi_modal_projector.linear.", "^paligemma.projector."),
    # The output layer is the embedding of words: files hold either, and safetensors drops the first.
    ("^paligemma_with_expert.paligemma.language_model.model.embed_tokens.", "^paligemma.words."),
    ("^paligemma_with_expert.paligemma.language_model.lm_head.", "^paligemma.words."),
    ("^paligemma_with_expert.paligemma.language_model.model.", "^paligemma.language."),
    ("^paligemma_with_expert.gemma_expert.model.", "^expert."),
    ("^action_in_proj.", "^action_in."),
    ("^action_out_proj.", "^action_out."),
    ("^action_time_mlp_in.", "^action_time_mlp.0."),
    ("^action_time_mlp_out.", "^action_time_mlp.2."),
]

TDMPC_NAMES = [
    ("^model_target.", "^target."),
    ("._encoder.image_enc_layers.", ".encoder.image."),
    ("._encoder.state_enc_layers.", ".encoder.state."),
    ("._encoder.env_state_enc_layers.", ".encoder.environment."),
    *((f"._{part}.", f".{part}.") for part in ("dynamics", "reward", "pi")),
    ("._Qs.", ".qs."),
    ("._V.", ".v."),
]

VQBET_NAMES = [
    ("^vqbet.rgb_encoder.", "^encoder."),
    ("^encoder.pool.nets.", "^encoder.pool.keypoints."),
    ("^encoder.out.", "^encoder.head."),
    ("^vqbet.rgb_feature_projector.0.", "^image_proj."),
    ("^vqbet.state_projector.0.", "^state_proj."),
    ("^vqbet.action_token$", "^action_token$"),
    ("^vqbet.policy.transformer.", "^gpt."),
    ("^vqbet.policy.lm_head.", "^gpt.head."),
    ("^gpt.wte.", "^gpt.input."),
    ("^gpt.wpe.", "^gpt.positions."),
    ("^gpt.ln_f.", "^gpt.norm."),
    ("^gpt.h.#.", "^gpt.blocks.#."),
    *((f"^gpt.blocks.#.ln_{i}.", f"^gpt.blocks.#.norm{i}.") for i in (1, 2)),
    (".attn.c_attn.", ".attention.qkv."),
    (".attn.c_proj.", ".attention.out."),
    ("^gpt.blocks.#.mlp.", "^gpt.blocks.#.feedforward."),
    ("^vqbet.action_head.map_to_cbet_preds_bin.0.", "^code_head."),
    ("^vqbet.action_head.map_to_cbet_preds_primary_bin.0.", "^primary_head."),
    ("^vqbet.action_head.map_to_cbet_preds_secondary_bin.0.", "^secondary_head."),
    ("^vqbet.action_head.map_to_cbet_preds_offset.0.", "^offset_head."),
    ("^vqbet.action_head.vqvae_model.", "^tokenizer."),
    ("^tokenizer.vq_layer.layers.#._codebook.", "^tokenizer.codebooks.#."),
    (".cluster_size$", ".counts$"),
    (".embed_avg$", ".sums$"),
    (".embed$", ".codes$"),
]
NAMES: dict[str, list[tuple[str, str]]] = {
    "act": ACT_NAMES,
    "diffusion": DIFFUSION_NAMES,
    "pi0": PI0_NAMES,
    "tdmpc": TDMPC_NAMES,
    "vqbet": VQBET_NAMES,
}

# Constants that are computed here, not stored, the phase of a training that the step tells, and the output layer of
# pi0's expert, which nothing uses.
CONSTANTS = re.compile(
    r"\.pool\.pos_grid$|^model\.vae_encoder_pos_enc$|^vqbet\.select_target_actions_indices$|\.attn\.bias$"
    r"|\.vqvae_model\.discretized$|\.vq_layer\.freeze_codebook$|\._codebook\.initted$|\.gemma_expert\.lm_head\.weight$"
)

STATISTIC = re.compile(r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_(.*)\.(\w+)")


def rename(kind: str) -> Callable[[str], tuple[str, str] | None]:
    """A function from a LeRobot parameter name to ("policy" or "normalizer", name here), None for constants."""

    def to_ours(name: str) -> tuple[str, str] | None:
        if stat := STATISTIC.fullmatch(name):
            return "normalizer", f"stats.{stat[1]}.{stat[2]}"
        if CONSTANTS.search(name):
            return None
        for theirs, ours in NAMES[kind]:
            name = _replaced(theirs, ours, name)
        return "policy", name

    return to_ours


def rename_back(kind: str, separate_encoders: bool = False) -> Callable[[str], str]:
    """A function from a policy's parameter name here to LeRobot's.

    Args:
        kind: LeRobot's type of the policy.
        separate_encoders: Each camera has an encoder of its own.
    """
    pairs = [pair for pair in NAMES[kind] if pair != SHARED_ENCODER or not separate_encoders]

    def to_theirs(name: str) -> str:
        for theirs, ours in reversed(pairs):
            name = _replaced(ours, theirs, name)
        return name

    return to_theirs


def statistic_names(name: str) -> list[str]:
    """LeRobot's names of a normaliser's statistic; the action's is stored twice."""
    _, key, stat = name.split(".")
    owners = ("normalize_targets", "unnormalize_outputs") if key == "action" else ("normalize_inputs",)
    return [f"{owner}.buffer_{key}.{stat}" for owner in owners]


def _replaced(old: str, new: str, name: str) -> str:
    pattern, template = _compiled(old, new)
    return pattern.sub(template, name)


@cache
def _compiled(old: str, new: str) -> tuple[re.Pattern[str], str]:
    body = re.escape(old.strip("^$")).replace(r"\#", r"(\d+)")
    start, end = "^" if old.startswith("^") else "", "$" if old.endswith("$") else ""
    template, number = new.strip("^$"), 1
    while "#" in template:
        template = template.replace("#", rf"\g<{number}>", 1)
        number += 1
    return re.compile(start + body + end), template
