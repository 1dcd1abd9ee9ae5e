"""A transformer whose position embeddings enter every attention layer (DETR, Carion et al. 2020, arXiv:2005.12872)."""

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "glu"]


def sinusoids(positions: Tensor, dim: int) -> Tensor:
    """Interleaved sines and cosines (n, dim) of positions (n,) (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""
    wavelengths = 10000 ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions.double()[:, None] / wavelengths
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def image_sinusoids(height: int, width: int, dim: int) -> Tensor:
    """Embeddings (height * width, dim) of a feature map's positions, row by row: half encodes the row, half the column.

    Rows and columns are scaled to (0, 2 pi], so that maps of every size span the same range.
    """
    rows, columns = (torch.arange(1, n + 1) * (2 * math.pi / n) for n in (height, width))
    y = sinusoids(rows, dim // 2)[:, None].expand(height, width, dim // 2)
    x = sinusoids(columns, dim // 2)[None].expand(height, width, dim // 2)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


class Residual(nn.Module):
    """Adds what a sublayer computes, normalising before the sublayer (`pre_norm`) or after the sum."""

    def __init__(self, dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """Same shape as x."""
        if self.pre_norm:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention in a decoder, and two linear layers, each with a residual.

    Args:
        dim: Width of the tokens, D.
        n_heads: Attention heads.
        hidden: Width between the two linear layers.
        activation: Between them; "glu" gates half of a first layer twice as wide (Dauphin et al. 2017).
        dropout: Of attention weights, hidden units and every residual.
        pre_norm: Normalise before each sublayer, else after it.
        cross_attention: Attend to a memory, the encoder's tokens, as well.
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        hidden: int,
        activation: Activation,
        dropout: float,
        pre_norm: bool,
        cross_attention: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, n_heads, dropout=dropout, batch_first=True)
        self.cross_attention = None
        if cross_attention:
            self.cross_attention = nn.MultiheadAttention(dim, n_heads, dropout=dropout, batch_first=True)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, 2 * hidden if activation == "glu" else hidden),
            {"relu": nn.ReLU, "gelu": nn.GELU, "glu": nn.GLU}[activation](),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
        )
        self.residuals = nn.ModuleList(Residual(dim, dropout, pre_norm) for _ in range(3 if cross_attention else 2))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        padding: Tensor | None = None,
        memory: Tensor | None = None,
        memory_positions: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, L, D) to (B, L, D).

        Args:
            x: The tokens.
            positions: Their embeddings (L, D), part of queries and keys but not of values.
            padding: True for tokens that are not attended to (B, L).
            memory: The encoder's tokens (B, S, D).
            memory_positions: Their embeddings (S, D).
        """

        def self_attend(y: Tensor) -> Tensor:
            queries = y + positions
            return self.self_attention(queries, queries, y, key_padding_mask=padding, need_weights=False)[0]

        def cross_attend(y: Tensor) -> Tensor:
            assert self.cross_attention is not None
            keys = cast(Tensor, memory) + cast(Tensor, memory_positions)
            return self.cross_attention(y + positions, keys, memory, need_weights=False)[0]

        x = self.residuals[0](x, self_attend)
        if self.cross_attention is not None:
            x = self.residuals[1](x, cross_attend)
        return self.residuals[-1](x, self.feedforward)


class TransformerEncoder(nn.Module):
    """Layers of self-attention; `layer` makes one. With pre-norm, a last LayerNorm follows."""

    def __init__(self, layer: Callable[[], TransformerLayer], n_layers: int, dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()

    def forward(self, x: Tensor, positions: Tensor, padding: Tensor | None = None) -> Tensor:
        """Tokens (B, L, D) with position embeddings (L, D), and true where they are padding (B, L), to (B, L, D)."""
        for layer in self.layers:
            x = layer(x, positions, padding)
        return self.norm(x)


class TransformerDecoder(nn.Module):
    """Layers of self- and cross-attention; `layer` makes one."""

    def __init__(self, layer: Callable[[], TransformerLayer], n_layers: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """Tokens (B, L, D) of learned queries (L, D) that attend to a memory (B, S, D).

        Args:
            queries: Position embeddings of the tokens, which themselves start at 0.
            memory: The encoder's tokens.
            memory_positions: Their position embeddings (S, D).
        """
        x = queries.new_zeros(len(memory), *queries.shape)
        for layer in self.layers:
            x = layer(x, queries, memory=memory, memory_positions=memory_positions)
        return self.norm(x)
