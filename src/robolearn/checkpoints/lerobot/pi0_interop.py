"""pi0 in LeRobot before 0.4."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robolearn.checkpoints.lerobot.interop import Interop

if TYPE_CHECKING:
    from torch import Tensor

    from robolearn.policies.pi0 import Pi0Policy

PALIGEMMA, EXPERT = "paligemma_with_expert.paligemma", "paligemma_with_expert.gemma_expert"
LANGUAGE = f"{PALIGEMMA}.language_model"
NAMES = [
    ("^model.", "^"),
    (f"^{PALIGEMMA}.vision_tower.vision_model.", "^paligemma.vision."),
    (f"^{PALIGEMMA}.multi_modal_projector.linear.", "^paligemma.projector."),
    # The output layer is the embedding of words: files hold either, and safetensors drops the first.
    (f"^{LANGUAGE}.model.embed_tokens.", "^paligemma.words."),
    (f"^{LANGUAGE}.lm_head.", "^paligemma.words."),
    (f"^{LANGUAGE}.model.", "^paligemma.language."),
    (f"^{EXPERT}.model.", "^expert."),
    ("^action_in_proj.", "^action_in."),
    ("^action_out_proj.", "^action_out."),
    ("^action_time_mlp_in.", "^action_time_mlp.0."),
    ("^action_time_mlp_out.", "^action_time_mlp.2."),
]


def constants(policy: "Pi0Policy", options: Mapping[str, Any]) -> "dict[str, Tensor]":
    """The output layer of the expert, which nothing uses and LeRobot stores all the same."""
    import torch

    words, width = policy.paligemma.words.num_embeddings, policy.expert.norm.weight.shape[0]
    return {f"model.{EXPERT}.lm_head.weight": torch.zeros(words, width)}


INTEROP = Interop(
    names=NAMES,
    optimizer="adamw",
    optimizer_keys=("lr", "betas", "eps", "weight_decay"),
    scheduler="cosine_decay_with_warmup",
    scheduler_keys={
        "scheduler_warmup_steps": "num_warmup_steps",
        "scheduler_decay_steps": "num_decay_steps",
        "scheduler_decay_lr": "decay_lr",
        "optimizer_lr": "peak_lr",
    },
    reference={
        "convert_statistics": False,
        "do_mask_loss_for_padding": False,
        "loss_over_padded_dims": True,
        "time_sampling": "two_powers",
    },
    inference_overrides={"loss_over_padded_dims": True},  # its noise covers the padded dimensions, too
    own_keys=frozenset(
        {
            "convert_statistics",
            "do_mask_loss_for_padding",
            "loss_over_padded_dims",
            "time_sampling",
            "tokenizer",
            "pretrained_paligemma",
            "download",
            "dtype",
            "vision",
            "language",
            "expert",
            "gradient_checkpointing",
        }
    ),
    ignored_fields=frozenset({"gradient_checkpointing"}),
    unsupported_fields={
        "paligemma_variant": "LeRobot's pi0 from 0.4 on is another implementation, whose weights cannot be read yet; "
        "take a checkpoint of the one before."
    },
    constant_names=r"\.gemma_expert\.lm_head\.weight$",
    constants=constants,
    tied_weights={
        f"model.{LANGUAGE}.model.embed_tokens.weight": f"model.{LANGUAGE}.lm_head.weight",
    },
    has_processors=False,  # LeRobot from 0.4 on has another implementation, which reads no such weights
)
