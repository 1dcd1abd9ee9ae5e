"""Masked grouped-query attention, in three equivalent implementations.

From queries (B, Q, H, D), keys and values (B, K, G, D), with H a multiple of G, to tokens (B, Q, H * D); the mask
(B, Q, K) is true where a query attends to a key, at least one for every query. It is prepared once for all layers that
share it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from robolearn.errors import UserError

Name = Literal["eager", "sdpa", "flex"]


@dataclass(frozen=True)
class AttentionBackend:
    """An implementation: `prepare` turns a mask (B, Q, K) into what `attend` takes with queries, keys and values."""

    prepare: Callable[[Tensor], Any]
    attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor]


def _eager(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Written out, with weights in float32 as the published code has them."""
    queries, keys, values = _split_groups(queries, keys, values)
    scores = queries.float() @ keys.float().transpose(-1, -2) * queries.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return _merge_heads(weights.to(values.dtype) @ values)


def _sdpa(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    queries, keys, values = _split_groups(queries, keys, values)
    return _merge_heads(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask))


def _flex(queries: Tensor, keys: Tensor, values: Tensor, mask: Any) -> Tensor:
    if not queries.is_cuda and torch.is_grad_enabled() and queries.requires_grad:
        raise UserError(
            "policy.attention_implementation=flex trains on a GPU only, because PyTorch has no gradients of it "
            "elsewhere",
            key="policy.attention_implementation",
            fix="use sdpa",
        )
    attend = _compiled_on_gpu(flex_attention, queries)
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))
    return _merge_heads(attend(queries, keys, values, block_mask=mask, enable_gqa=True))


def _block_mask(mask: Tensor) -> Any:
    create = _compiled_on_gpu(create_block_mask, mask)
    batch, queries, keys = mask.shape
    return create(lambda b, h, q, k: mask[b, q, k], batch, None, queries, keys, device=str(mask.device))


def _compiled_on_gpu(function: Callable[..., Any], tensor: Tensor) -> Callable[..., Any]:
    """On a GPU, the function compiled, unless the caller is being compiled and so includes it."""
    return _compiled(function) if tensor.is_cuda and not torch.compiler.is_compiling() else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=False)


def _split_groups(queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Heads before tokens, (B, H, L, D); the keys and values of a group are expanded to its heads without a copy."""
    groups = queries.shape[2] // keys.shape[2]
    keys, values = (x.transpose(1, 2).unsqueeze(2).expand(-1, -1, groups, -1, -1).flatten(1, 2) for x in (keys, values))
    return queries.transpose(1, 2), keys, values


def _merge_heads(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2)


ATTENTION: dict[Name, AttentionBackend] = {
    "eager": AttentionBackend(lambda mask: mask.unsqueeze(1), _eager),
    "sdpa": AttentionBackend(lambda mask: mask.unsqueeze(1), _sdpa),
    "flex": AttentionBackend(_block_mask, _flex),
}
