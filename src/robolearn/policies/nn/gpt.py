"""A causal transformer over vectors: GPT-2's blocks (Radford et al. 2019) as BeT (arXiv:2206.11251) uses them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention of several heads; causal: no position sees a later one.

    Args:
        dim: Width.
        heads: Heads; they divide `dim`.
        dropout: Of the attention's weights and of the output.
        causal: Whether later positions are hidden.
    """

    def __init__(self, dim: int, heads: int, dropout: float, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) to the same."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=self.causal)
        return F.dropout(self.out(attended.transpose(1, 2).flatten(2)), self.dropout, self.training)


class Block(nn.Module):
    """Attention and a feedforward network, each normalised before and added to its input."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, dropout)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) to the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.feedforward(self.norm2(x))


class Gpt(nn.Module):
    """Vectors (B, T, in_features) to vectors (B, T, out_features), T at most `block_size`.

    Args:
        in_features: Length of the vectors given.
        out_features: Length of the vectors returned.
        block_size: Learnt positions.
        dim: Width.
        layers: Blocks.
        heads: Heads of each.
        dropout: Rate.
    """

    def __init__(
        self, in_features: int, out_features: int, block_size: int, dim: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.input = nn.Linear(in_features, dim)
        self.positions = nn.Embedding(block_size, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, out_features, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():
            if name.endswith("attention.out.weight"):
                # Each block adds twice to the residual stream, whose variance shall not grow with depth.
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, x: Tensor) -> Tensor:
        """One vector for each, which depends on it and on those before it."""
        x = self.dropout(self.input(x) + self.positions(torch.arange(x.shape[1], device=x.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
