"""Policies as LeRobot publishes them: its config.json and its parameter names, in this project's terms."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy
from robolearn.policies.diffusion import DiffusionPolicy
from robolearn.policies.pi0 import Pi0Policy
from robolearn.policies.tdmpc import TdmpcPolicy
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.types import Feature, Spec

# Options that belong to the optimizer, the schedule or the features here, not to the policy, and one nobody reads.
ELSEWHERE = re.compile(r"type|input_features|output_features|optimizer_.*|scheduler_.*|device|use_amp|mlp_hidden_dim")

EMPTY_CAMERA = re.compile(r"observation\.images\.empty_camera_\d+")

# LeRobot's behaviours that this project mends, turned back on.
REFERENCE = {
    "act": {"average_over_padding": True},
    "diffusion": {"crop_per_sample": False, "average_over_padding": True, "final_n_groups": 8},
    "pi0": {
        "convert_statistics": False,
        "do_mask_loss_for_padding": False,
        "loss_over_padded_dims": True,
        "time_sampling": "two_powers",
    },
    "tdmpc": {"q_draws_with_replacement": True, "warm_start_shift": 1},
    "vqbet": {
        "crop_per_sample": False,
        "do_mask_loss_for_padding": False,
        "gradient_per_layer": True,
        "sample_codes_in_training": True,
    },
}

POLICIES: dict[str, type[Policy]] = {
    "act": ActPolicy,
    "diffusion": DiffusionPolicy,
    "pi0": Pi0Policy,
    "tdmpc": TdmpcPolicy,
    "vqbet": VqbetPolicy,
}

ACT_NAMES = [
    (r"^model\.", r""),
    (r"^vae_encoder\.", r"vae.encoder."),
    (r"^vae_encoder_cls_embed\.weight$", r"vae.cls"),
    (r"^vae_encoder_(?:robot_)?(state|action)_input_proj\.", r"vae.\1_proj."),
    (r"^vae_encoder_latent_output_proj\.", r"vae.head."),
    (r"^backbone\.conv1\.", r"backbone.0."),
    (r"^backbone\.bn1\.", r"backbone.1."),
    *((rf"^backbone\.layer{i}\.", rf"backbone.{i + 3}.") for i in range(1, 5)),
    (r"^encoder_latent_input_proj\.", r"latent_proj."),
    (r"^encoder_robot_state_input_proj\.", r"state_proj."),
    (r"^encoder_env_state_input_proj\.", r"environment_proj."),
    (r"^encoder_img_feat_input_proj\.", r"image_proj."),
    (r"^encoder_1d_feature_pos_embed\.weight$", r"vector_positions"),
    (r"^decoder_pos_embed\.weight$", r"queries"),
    (r"^action_head\.", r"head."),
    (r"(coder\.layers\.\d+)\.self_attn\.", r"\1.self_attention."),
    (r"(coder\.layers\.\d+)\.multihead_attn\.", r"\1.cross_attention."),
    (r"(coder\.layers\.\d+)\.linear1\.", r"\1.feedforward.0."),
    (r"(coder\.layers\.\d+)\.linear2\.", r"\1.feedforward.3."),
    *((rf"(coder\.layers\.\d+)\.norm{i}\.", rf"\1.residuals.{i - 1}.norm.") for i in range(1, 4)),
]

DIFFUSION_NAMES = [
    (r"^diffusion\.rgb_encoder\.(\d+)\.", r"encoders.\1."),
    (r"^diffusion\.rgb_encoder\.", r"encoders.0."),
    (r"\.pool\.nets\.", r".pool.keypoints."),
    (r"^(encoders\.\d+)\.out\.", r"\1.head."),
    (r"^diffusion\.unet\.", r"unet."),
    (r"^unet\.diffusion_step_encoder\.", r"unet.step_embedding."),
    (r"^unet\.(down|mid|up)_modules\.", r"unet.\1."),
    (r"^(unet\..*\.conv[12])\.block\.", r"\1."),
    (r"\.cond_encoder\.", r".film."),
    (r"\.residual_conv\.", r".skip."),
    (r"^unet\.final_conv\.0\.block\.", r"unet.final.0."),
    (r"^unet\.final_conv\.1\.", r"unet.final.1."),
]

PI0_NAMES = [
    (r"^model\.", r""),
    (r"^paligemma_with_expert\.paligemma\.vision_tower\.vision_model\.", r"paligemma.vision."),
    (r"^paligemma_with_expert\.paligemma\.multi_modal_projector\.linear\.", r"paligemma.projector."),
    # The output layer is the embedding of words: files hold either.
    (r"^paligemma_with_expert\.paligemma\.language_model\.(?:model\.embed_tokens|lm_head)\.", r"paligemma.words."),
    (r"^paligemma_with_expert\.paligemma\.language_model\.model\.", r"paligemma.language."),
    (r"^paligemma_with_expert\.gemma_expert\.model\.", r"expert."),
    (r"^action_(in|out)_proj\.", r"action_\1."),
    (r"^action_time_mlp_in\.", r"action_time_mlp.0."),
    (r"^action_time_mlp_out\.", r"action_time_mlp.2."),
]

TDMPC_NAMES = [
    (r"^model_target\.", r"target."),
    (r"\._encoder\.image_enc_layers\.", r".encoder.image."),
    (r"\._encoder\.state_enc_layers\.", r".encoder.state."),
    (r"\._encoder\.env_state_enc_layers\.", r".encoder.environment."),
    (r"\._(dynamics|reward|pi)\.", r".\1."),
    (r"\._Qs\.", r".qs."),
    (r"\._V\.", r".v."),
]

VQBET_NAMES = [
    (r"^vqbet\.rgb_encoder\.", r"encoder."),
    (r"^(encoder\.pool)\.nets\.", r"\1.keypoints."),
    (r"^encoder\.out\.", r"encoder.head."),
    (r"^vqbet\.rgb_feature_projector\.0\.", r"image_proj."),
    (r"^vqbet\.state_projector\.0\.", r"state_proj."),
    (r"^vqbet\.action_token$", r"action_token"),
    (r"^vqbet\.policy\.(?:transformer\.)?", r"gpt."),
    (r"^gpt\.wte\.", r"gpt.input."),
    (r"^gpt\.wpe\.", r"gpt.positions."),
    (r"^gpt\.ln_f\.", r"gpt.norm."),
    (r"^gpt\.lm_head\.", r"gpt.head."),
    (r"^gpt\.h\.(\d+)\.", r"gpt.blocks.\1."),
    (r"^(gpt\.blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"\.attn\.c_attn\.", r".attention.qkv."),
    (r"\.attn\.c_proj\.", r".attention.out."),
    (r"^(gpt\.blocks\.\d+)\.mlp\.", r"\1.feedforward."),
    (r"^vqbet\.action_head\.map_to_cbet_preds_bin\.0\.", r"code_head."),
    (r"^vqbet\.action_head\.map_to_cbet_preds_(primary|secondary)_bin\.0\.", r"\1_head."),
    (r"^vqbet\.action_head\.map_to_cbet_preds_offset\.0\.", r"offset_head."),
    (r"^vqbet\.action_head\.vqvae_model\.", r"tokenizer."),
    (r"^tokenizer\.vq_layer\.layers\.(\d+)\._codebook\.", r"tokenizer.codebooks.\1."),
    (r"\.cluster_size$", r".counts"),
    (r"\.embed_avg$", r".sums"),
    (r"\.embed$", r".codes"),
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


def build(config: Mapping[str, Any], fps: float = 1.0) -> tuple[Policy, Normalizer]:
    """A policy and its normaliser, with the reference's behaviour, still without their weights.

    Args:
        config: The content of a LeRobot config.json.
        fps: Frames a second of the robot, which config.json does not say.

    Raises:
        UserError: The type is not supported here.
    """
    kind = config["type"]
    if kind not in POLICIES:
        raise UserError(f"LeRobot policies of type '{kind}' cannot be read; those that can: {', '.join(POLICIES)}.")
    options = {key: value for key, value in config.items() if not ELSEWHERE.fullmatch(key)}
    spec = spec_of(config, fps)
    policy = POLICIES[kind](spec, **options, **REFERENCE[kind])
    return policy, Normalizer(spec, policy.normalization_mapping, space=policy.space)


def spec_of(config: Mapping[str, Any], fps: float) -> Spec:
    """The features that a LeRobot config.json lists, without the cameras that the robot lacks."""
    inputs = {k: f for k, f in config["input_features"].items() if not EMPTY_CAMERA.fullmatch(k)}
    observation = {k: Feature(f["type"], tuple(f["shape"])) for k, f in inputs.items()}
    return Spec(observation, Feature("ACTION", tuple(config["output_features"]["action"]["shape"])), fps)


def rename(kind: str) -> Callable[[str], tuple[str, str] | None]:
    """A function from a LeRobot parameter name to ("policy" or "normalizer", name here), None for constants."""

    def to_ours(name: str) -> tuple[str, str] | None:
        stat = re.fullmatch(r"(?:normalize_inputs|normalize_targets|unnormalize_outputs)\.buffer_(.*)\.(\w+)", name)
        if stat:
            return "normalizer", f"stats.{stat[1]}.{stat[2]}"
        if CONSTANTS.search(name):
            return None
        for pattern, replacement in NAMES[kind]:
            name = re.sub(pattern, replacement, name)
        return "policy", name

    return to_ours


def load(policy: Policy, normalizer: Normalizer, kind: str, state: Mapping[str, Tensor]) -> None:
    """Fill a policy and its normaliser from a LeRobot state dict.

    Raises:
        UserError: Names or shapes do not fit the policy.
    """
    ours: dict[str, dict[str, Tensor]] = {"policy": {}, "normalizer": {}}
    to_ours = rename(kind)
    for name, value in state.items():
        place = to_ours(name)
        if place:
            ours[place[0]][place[1]] = value
    try:
        policy.load_state_dict(ours["policy"])
        normalizer.load_state_dict(ours["normalizer"])
    except RuntimeError as error:
        raise UserError(f"The weights do not fit config.json: {str(error).splitlines()[-1].strip()}") from None
