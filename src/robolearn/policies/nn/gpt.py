"""A causal transformer over vectors: GPT-2's blocks (Radford et al. 2019) as BeT (arXiv:2206.11251) uses them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    """Multi-head self-attention; causal: no position attends to a later one.

    Args:
        dim: Width, a multiple of `heads`.
        heads: Attention heads.
        dropout: Dropout rate of the attention's weights and of the output.
        causal: Whether later positions are masked.
    """

    def __init__(self, dim: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, dim) to tokens of the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=self.causal)
        return F.dropout(self.out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)


class GptBlock(nn.Module):
    """Self-attention and a feedforward network, each a residual with a LayerNorm before it."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, T, dim) to tokens of the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.feedforward(self.norm2(x))


class Gpt(nn.Module):
    """Vectors (B, T, in_features) to vectors (B, T, out_features), T at most `block_size`.

    Args:
        in_features: Size of the input vectors.
        out_features: Size of the output vectors.
        block_size: Learned position embeddings, the longest sequence.
        dim: Width.
        layers: Number of blocks.
        heads: Attention heads of each.
        dropout: Dropout rate.
    """

    def __init__(
        self, in_features: int, out_features: int, block_size: int, dim: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.input = nn.Linear(in_features, dim)
        self.positions = nn.Embedding(block_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(GptBlock(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, out_features, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith("attention.out.weight"):
                # Each block adds twice to the residual stream, whose variance should not grow with depth.
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, x: Tensor) -> Tensor:
        """One output vector for each input vector, which depends on it and on those before it."""
        x = self.dropout(self.input(x) + self.positions(torch.arange(x.shape[1], device=x.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
