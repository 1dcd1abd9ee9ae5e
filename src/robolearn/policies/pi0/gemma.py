"""Gemma (arXiv:2403.08295) as two stacks of transformers' layers, of which one reads what the other remembers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robolearn.policies.pi0.attention import Attention

MAX_WAVELENGTH = 10_000.0


@dataclass(frozen=True)
class KVCache:
    """Keys and values (B, P, G, D) that each layer made of the tokens it has read, and which of these count (B, P)."""

    layers: list[tuple[Tensor, Tensor]]
    valid: Tensor


class Gemma(nn.Module):
    """A stack of Gemma's layers over tokens that are embedded already.

    Args:
        sizes: Values of transformers' GemmaConfig.
        attention: How tokens look at each other.
        checkpoints: Compute each layer a second time when gradients are taken, instead of keeping what it computed.
    """

    def __init__(self, sizes: Mapping[str, Any], attention: Attention, checkpoints: bool) -> None:
        super().__init__()
        from transformers import GemmaConfig, GemmaModel  # takes seconds to import

        # The vocabulary is embedded elsewhere, once.
        without = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
        model = GemmaModel(GemmaConfig(**{**sizes, **without}))
        self.layers, self.norm = model.layers, model.norm
        self.head_dim: int = sizes["head_dim"]
        self.attention, self.checkpoints = attention, checkpoints

    def prefill(self, tokens: Tensor, valid: Tensor) -> KVCache:
        """What the layers make of tokens (B, P, W) that all look at each other, where they are valid (B, P).

        What the last layer would make of them nobody reads, so it stops at its keys and values.
        """
        rotation = RotaryEmbedding((valid.cumsum(-1) - 1).clamp(min=0), self.head_dim)
        mask = self.attention.prepare(valid.unsqueeze(1).expand(-1, tokens.shape[1], -1))
        memory = []
        for layer in self.layers[:-1]:
            tokens, *remembered = self._run(_self_attend, layer, tokens, rotation, mask, self.attention)
            memory.append(tuple(remembered))
        last = self.layers[-1]
        memory.append(_keys_values(last, _normed(last, tokens), rotation))
        return KVCache(memory, valid)

    def forward(self, tokens: Tensor, memory: KVCache, own: Tensor) -> Tensor:
        """Tokens (B, S, W) that look at all that is remembered and, where `own` (S, S) is true, at each other."""
        batch, count, _ = tokens.shape
        steps = torch.arange(count, device=tokens.device)
        rotation = RotaryEmbedding(memory.valid.sum(-1, keepdim=True) + steps, self.head_dim)
        seen = memory.valid.unsqueeze(1).expand(-1, count, -1)
        mask = self.attention.prepare(torch.cat([seen, own.expand(batch, -1, -1)], dim=-1))
        for layer, remembered in zip(self.layers, memory.layers, strict=True):
            tokens = self._run(_cross_attend, layer, tokens, remembered, rotation, mask, self.attention)
        return self.norm(tokens)

    def _run(self, function: Any, *arguments: Any) -> Any:
        if self.checkpoints and self.training and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return function(*arguments)


class RotaryEmbedding:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), in float32.

    Args:
        positions: (B, L), counted from 0.
        dim: Numbers of a head, D.
    """

    def __init__(self, positions: Tensor, dim: int) -> None:
        exponents = torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim
        angles = positions.unsqueeze(-1).float() / MAX_WAVELENGTH**exponents
        self.cos, self.sin = angles.cos().unsqueeze(2), angles.sin().unsqueeze(2)

    def __call__(self, heads: Tensor) -> Tensor:
        """Rotate heads (B, L, H, D)."""
        first, second = heads.float().chunk(2, dim=-1)
        rotated = [first * self.cos - second * self.sin, second * self.cos + first * self.sin]
        return torch.cat(rotated, dim=-1).to(heads.dtype)


def _self_attend(layer: Any, tokens: Tensor, rotation: RotaryEmbedding, mask: Any, attention: Attention) -> Any:
    normed = _normed(layer, tokens)
    keys, values = _keys_values(layer, normed, rotation)
    attended = attention.attend(_queries(layer, normed, rotation), keys, values, mask)
    return _residuals(layer, tokens, attended), keys, values


def _cross_attend(
    layer: Any,
    tokens: Tensor,
    remembered: tuple[Tensor, Tensor],
    rotation: RotaryEmbedding,
    mask: Any,
    attention: Attention,
) -> Tensor:
    normed = _normed(layer, tokens)
    own = _keys_values(layer, normed, rotation)
    keys, values = (torch.cat(parts, dim=1) for parts in zip(remembered, own, strict=True))
    attended = attention.attend(_queries(layer, normed, rotation), keys, values, mask)
    return _residuals(layer, tokens, attended)


def _normed(layer: Any, tokens: Tensor) -> Tensor:
    # Tokens may come in float32; their precision matters most to the first norm.
    return layer.input_layernorm(tokens).to(layer.self_attn.q_proj.weight.dtype)


def _queries(layer: Any, normed: Tensor, rotation: RotaryEmbedding) -> Tensor:
    return rotation(_heads(layer, layer.self_attn.q_proj(normed)))


def _keys_values(layer: Any, normed: Tensor, rotation: RotaryEmbedding) -> tuple[Tensor, Tensor]:
    keys, values = (_heads(layer, project(normed)) for project in (layer.self_attn.k_proj, layer.self_attn.v_proj))
    return rotation(keys), values


def _heads(layer: Any, projected: Tensor) -> Tensor:
    return projected.unflatten(-1, (-1, layer.self_attn.head_dim))


def _residuals(layer: Any, tokens: Tensor, attended: Tensor) -> Tensor:
    weights = layer.self_attn.o_proj.weight
    tokens = (tokens + layer.self_attn.o_proj(attended.to(weights.dtype))).to(weights.dtype)
    return tokens + layer.mlp(layer.post_attention_layernorm(tokens))
