"""PaliGemma (Beyer et al. 2024, arXiv:2407.07726): images and text as tokens of one language model."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robolearn.policies.pi0.attention import AttentionBackend
from robolearn.policies.pi0.gemma import Gemma, KVCache


class PaliGemma(nn.Module):
    """SigLIP (Zhai et al. 2023, arXiv:2303.15343) for images, Gemma for its tokens and those of the instruction.

    Args:
        vision: Values of transformers' SiglipVisionConfig.
        language: Values of transformers' GemmaConfig.
        attention: Implementation of Gemma's attention.
        checkpoints: Recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        vision: Mapping[str, Any],
        language: Mapping[str, Any],
        attention: AttentionBackend,
        checkpoints: bool,
    ) -> None:
        super().__init__()
        from transformers import SiglipVisionConfig, SiglipVisionModel  # takes seconds to import

        model = SiglipVisionModel(SiglipVisionConfig(**vision, vision_use_head=False))
        if checkpoints:
            # Before transformers 5 the method had its other name.
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
        # transformers 4 has the network one level deeper; parameter names must not depend on that.
        self.vision: nn.Module = getattr(model, "vision_model", model)
        self.projector = nn.Linear(vision["hidden_size"], language["hidden_size"])
        self.words = nn.Embedding(language["vocab_size"], language["hidden_size"])
        nn.init.normal_(self.words.weight, std=0.02)
        self.language = Gemma(language, attention, checkpoints)

    def forward(self, images: Sequence[Tensor], words: Tensor, words_valid: Tensor) -> KVCache:
        """Keys and values of images (B, 3, S, S) in [-1, 1] and text tokens (B, L) where these are valid (B, L)."""
        tokens, valid = [self.words(words) * math.sqrt(self.words.embedding_dim)], [words_valid]
        if images:
            encoded = self.encode_images(images)
            tokens.insert(0, encoded)
            valid.insert(0, torch.ones(encoded.shape[:2], dtype=torch.bool, device=encoded.device))
        return self.language.prefill(torch.cat(tokens, dim=1), torch.cat(valid, dim=1))

    def encode_images(self, images: Sequence[Tensor]) -> Tensor:
        """The tokens of all cameras, concatenated (B, cameras * patches, W); one pass for all."""
        features = self.projector(self.vision(torch.cat(list(images))).last_hidden_state)
        return torch.cat(features.chunk(len(images)), dim=1)


def resize_with_pad(images: Tensor, width: int, height: int) -> Tensor:
    """Images (B, C, H, W) resized into (B, C, height, width), aspect ratio kept; zeros on the left and top."""
    ratio = max(images.shape[-1] / width, images.shape[-2] / height)
    size = int(images.shape[-2] / ratio), int(images.shape[-1] / ratio)
    scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return F.pad(scaled, (width - size[1], 0, height - size[0], 0))
