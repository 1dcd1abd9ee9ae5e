"""VQ-BeT in LeRobot."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robolearn.checkpoints.lerobot.interop import Interop

if TYPE_CHECKING:
    from torch import Tensor

    from robolearn.policies.vqbet import VqbetPolicy

log = logging.getLogger(__name__)

NAMES = [
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
TOKENIZER = "vqbet.action_head.vqvae_model"
TOKENIZER_IS_TRAINED = f"{TOKENIZER}.discretized"


def constants(policy: "VqbetPolicy", options: Mapping[str, Any]) -> "dict[str, Tensor]":
    """Indices and masks, which are computed here, and whether the tokenizer is trained, which the step decides here."""
    import torch

    tokens = policy.n_obs_steps + policy.future_tokens
    starts, offsets = torch.arange(tokens)[:, None], torch.arange(policy.chunk_size)[None]
    block = policy.gpt.positions.num_embeddings
    trained = torch.tensor(options.get("n_vqvae_training_steps") == 0)
    return {
        "vqbet.select_target_actions_indices": starts + offsets,
        TOKENIZER_IS_TRAINED: trained,
        f"{TOKENIZER}.vq_layer.freeze_codebook": trained,
        **{
            f"vqbet.policy.transformer.h.{i}.attn.bias": torch.ones(1, 1, block, block).tril()
            for i in range(len(policy.gpt.blocks))
        },
        **{
            f"{TOKENIZER}.vq_layer.layers.{i}._codebook.initted": torch.ones(1)
            for i in range(len(policy.tokenizer.codebooks))
        },
    }


def check_export(options: Mapping[str, Any]) -> None:
    """LeRobot executes whole chunks."""
    steps, chunk = options.get("n_action_steps"), options.get("action_chunk_size")
    if steps not in (None, chunk):
        log.warning("policy.n_action_steps=%s: LeRobot executes all %s.", steps, chunk)


def checkpoint_options(folder: Path) -> dict[str, Any]:
    """No steps for the tokenizer where it is trained."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "model.safetensors", "numpy") as file:
            trained = bool(file.get_tensor(TOKENIZER_IS_TRAINED))
    except (SafetensorError, OSError):  # reported when the weights are read
        trained = False
    return {"n_vqvae_training_steps": 0} if trained else {}


INTEROP = Interop(
    names=NAMES,
    type_marker="vqvae_n_embed",
    optimizer="adam",
    optimizer_keys=("lr", "betas", "eps", "weight_decay"),
    scheduler="vqbet",
    scheduler_keys={"scheduler_warmup_steps": "num_warmup_steps"},
    param_groups={"no_decay": {"weight_decay": 0.0}},
    param_group_fields={
        "optimizer_vqvae_lr": ("tokenizer", "lr"),
        "optimizer_vqvae_weight_decay": ("tokenizer", "weight_decay"),
    },
    reference={
        "crop_per_sample": False,
        "do_mask_loss_for_padding": False,
        "gradient_per_layer": True,
        "sample_codes_in_training": True,
    },
    own_keys=frozenset(
        {
            "crop_per_sample",
            "do_mask_loss_for_padding",
            "gradient_per_layer",
            "sample_codes_in_training",
            "n_action_steps",
            "drop_n_last_frames",
            "focal_loss_gamma",
            "commitment_loss_weight",
            "codebook_decay",
        }
    ),
    ignored_fields=frozenset({"mlp_hidden_dim"}),
    constant_names=(
        r"\.pool\.pos_grid$|^vqbet\.select_target_actions_indices$|\.attn\.bias$|\.vqvae_model\.discretized$"
        r"|\.vq_layer\.freeze_codebook$|\._codebook\.initted$"
    ),
    constants=constants,
    check_export=check_export,
    checkpoint_options=checkpoint_options,
)
