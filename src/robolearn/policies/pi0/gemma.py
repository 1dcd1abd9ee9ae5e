"""Gemma (arXiv:2403.08295): stacks of its layers, of which one attends to the keys and values of another."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robolearn.policies.pi0.attention import AttentionBackend

MAX_WAVELENGTH = 10_000.0


@dataclass(frozen=True)
class KVCache:
    """Keys and values of a prefix of P tokens.

    Attributes:
        layers: Keys and values (B, P, G, D) of each layer.
        valid: False for padding (B, P).
    """

    layers: list[tuple[Tensor, Tensor]]
    valid: Tensor


class Gemma(nn.Module):
    """A stack of Gemma's layers over tokens that are embedded already.

    Args:
        sizes: Values of transformers' GemmaConfig.
        attention: Its implementation.
        checkpoints: Recompute each layer in the backward pass instead of keeping its activations.
    """

    def __init__(self, sizes: Mapping[str, Any], attention: AttentionBackend, checkpoints: bool) -> None:
        super().__init__()
        from transformers import GemmaConfig, GemmaModel  # takes seconds to import

        # The vocabulary is embedded elsewhere, once.
        without = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}
        model = GemmaModel(GemmaConfig(**{**sizes, **without}))
        self.layers, self.norm = model.layers, model.norm
        self.head_dim: int = sizes["head_dim"]
        self.attention, self.checkpoints = attention, checkpoints

    def prefill(self, tokens: Tensor, valid: Tensor) -> KVCache:
        """Keys and values of tokens (B, P, W) that all attend to each other, where they are valid (B, P).

        The last layer stops at its keys and values, because nothing reads its output.
        """
        rotation = RotaryEmbedding((valid.cumsum(-1) - 1).clamp(min=0), self.head_dim)
        mask = self.attention.prepare(valid.unsqueeze(1).expand(-1, tokens.shape[1], -1))
        cache = []
        for layer in self.layers[:-1]:
            tokens, *keys_values = self._run(_self_attend, layer, tokens, rotation, mask, self.attention)
            cache.append(tuple(keys_values))
        last = self.layers[-1]
        cache.append(_keys_values(last, _normed(last, tokens), rotation))
        return KVCache(cache, valid)

    def forward(self, tokens: Tensor, prefix: KVCache, mask: Tensor) -> Tensor:
        """Tokens (B, S, W) that attend to a whole prefix and, where the mask (S, S) is true, to each other."""
        batch, count, _ = tokens.shape
        steps = torch.arange(count, device=tokens.device)
        rotation = RotaryEmbedding(prefix.valid.sum(-1, keepdim=True) + steps, self.head_dim)
        to_prefix = prefix.valid.unsqueeze(1).expand(-1, count, -1)
        prepared = self.attention.prepare(torch.cat([to_prefix, mask.expand(batch, -1, -1)], dim=-1))
        for layer, keys_values in zip(self.layers, prefix.layers, strict=True):
            tokens = self._run(_prefix_attend, layer, tokens, keys_values, rotation, prepared, self.attention)
        return self.norm(tokens)

    def _run(self, function: Any, *arguments: Any) -> Any:
        if self.checkpoints and self.training and torch.is_grad_enabled():
            return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
        return function(*arguments)


class RotaryEmbedding:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), in float32.

    Args:
        positions: (B, L), counted from 0.
        dim: Size of a head, D.
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


def _self_attend(layer: Any, tokens: Tensor, rotation: RotaryEmbedding, mask: Any, attention: AttentionBackend) -> Any:
    normed = _normed(layer, tokens)
    keys, values = _keys_values(layer, normed, rotation)
    attended = attention.attend(_queries(layer, normed, rotation), keys, values, mask)
    return _residuals(layer, tokens, attended), keys, values


def _prefix_attend(
    layer: Any,
    tokens: Tensor,
    prefix: tuple[Tensor, Tensor],
    rotation: RotaryEmbedding,
    mask: Any,
    attention: AttentionBackend,
) -> Tensor:
    normed = _normed(layer, tokens)
    suffix = _keys_values(layer, normed, rotation)
    keys, values = (torch.cat(parts, dim=1) for parts in zip(prefix, suffix, strict=True))
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
