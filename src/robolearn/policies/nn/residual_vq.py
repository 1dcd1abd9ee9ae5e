"""Action chunks as codes: an autoencoder with residual vector quantisation (SoundStream, arXiv:2107.03312)."""

from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from robolearn import rng

# Against division by 0 where a code was never chosen.
SMOOTHING = 1e-5


class Codebook(nn.Module):
    """Code vectors, running means of the inputs nearest to them (van den Oord et al. 2017, arXiv:1711.00937, A.1).

    The buffers' leading 1 is that of published checkpoints.

    Args:
        size: Number of codes, C.
        dim: Size of a code's vector, D.
        decay: Decay of the running counts and sums.
    """

    counts: Tensor
    sums: Tensor
    codes: Tensor

    def __init__(self, size: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        codes = nn.init.kaiming_uniform_(torch.empty(1, size, dim))
        self.register_buffer("counts", torch.zeros(1, size))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("codes", codes)

    def forward(self, x: Tensor) -> Tensor:
        """Indices (N,) of the codes nearest to x (N, D)."""
        return torch.cdist(x, self.codes[0]).argmin(-1)

    @torch.no_grad()
    def ema_update(self, x: Tensor, chosen: Tensor, weights: Tensor) -> None:
        """Move the codes (equations 6 to 8 of appendix A.1).

        Args:
            x: Vectors (N, D).
            chosen: Index of the code of each (N,).
            weights: Weight of each (N,).
        """
        assigned = one_hot(chosen, self.codes.shape[1]) * weights.unsqueeze(-1)
        self.counts[0].lerp_(rng.all_reduce_sum(assigned.sum(0)), 1 - self.decay)
        self.sums[0].lerp_(rng.all_reduce_sum(assigned.T @ x), 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + SMOOTHING) / (total + self.counts.shape[1] * SMOOTHING) * total
        self.codes.copy_(self.sums / smoothed.unsqueeze(-1))


class Tokens(NamedTuple):
    """The quantisation of N encoded chunks.

    Attributes:
        codes: An index for each codebook, (N, G).
        quantized: Sum of the codes' vectors, (N, D); its gradient goes to the encoder.
        commitment: Squared distance of each residual to its code, summed over the codebooks, (N,).
    """

    codes: Tensor
    quantized: Tensor
    commitment: Tensor


class ActionTokenizer(nn.Module):
    """Encodes chunks of actions into codes; each codebook quantises the residual of the one before.

    Args:
        chunk_size: Actions of a chunk, W.
        action_dim: Size of an action, A.
        hidden_dim: Hidden width of encoder and decoder.
        embedding_dim: Size of a code's vector, D.
        codebook_size: Codes of a codebook, C.
        codebooks: Number of codebooks, G.
        decay: Decay of a codebook's running means.
        gradient_per_layer: The reconstruction's gradient reaches the encoder once for each codebook, as in the
            reference; else once.
    """

    def __init__(
        self,
        chunk_size: int,
        action_dim: int,
        hidden_dim: int,
        embedding_dim: int,
        codebook_size: int,
        codebooks: int = 2,
        decay: float = 0.8,
        gradient_per_layer: bool = False,
    ) -> None:
        super().__init__()
        self.chunk_size, self.gradient_per_layer = chunk_size, gradient_per_layer
        self.encoder = _mlp(chunk_size * action_dim, hidden_dim, embedding_dim)
        self.decoder = _mlp(embedding_dim, hidden_dim, chunk_size * action_dim)
        self.codebooks = nn.ModuleList(Codebook(codebook_size, embedding_dim, decay) for _ in range(codebooks))

    def forward(self, chunks: Tensor, weights: Tensor | None = None) -> Tokens:
        """Tokens of chunks (N, W, A).

        Args:
            chunks: Normalised actions.
            weights: Weight of each chunk in the update of the codebooks (N,); None: they are not updated.
        """
        encoded = self.encoder(chunks.flatten(1))
        # Codebooks are means of thousands of vectors: never in half precision.
        kind = chunks.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            encoded = encoded.float()
            residual, quantized = encoded, torch.zeros_like(encoded)
            codes, commitment = [], torch.zeros_like(encoded[:, 0])
            for module in self.codebooks:
                codebook = cast(Codebook, module)
                chosen = codebook(residual.detach())
                vector = codebook.codes[0][chosen]
                commitment = commitment + (vector - residual).square().mean(-1)
                if weights is not None:
                    codebook.ema_update(residual.detach(), chosen, weights)
                quantized = quantized + vector
                codes.append(chosen)
                residual = residual - vector
            # The straight-through estimator.
            passes = len(codes) if self.gradient_per_layer else 1
            quantized = quantized + passes * (encoded - encoded.detach())
        return Tokens(torch.stack(codes, dim=1), quantized, commitment)

    def embed(self, codes: Tensor) -> Tensor:
        """The sum (N, D) of the vectors of codes (N, G)."""
        vectors = [cast(Codebook, book).codes[0][chosen] for book, chosen in zip(self.codebooks, codes.T, strict=True)]
        return torch.stack(vectors).sum(0)

    def decode(self, quantized: Tensor) -> Tensor:
        """Chunks (N, W, A) of vectors (N, D)."""
        return self.decoder(quantized).unflatten(1, (self.chunk_size, -1))


def one_hot(indices: Tensor, size: int) -> Tensor:
    """Floats (*, size) that are 1 at the indices (*); unlike torch's it never synchronises with the device."""
    return (indices.unsqueeze(-1) == torch.arange(size, device=indices.device)).float()


def sample(probabilities: Tensor) -> Tensor:
    """An index (*) of each distribution (*, C), as torch.multinomial samples it, but without synchronising."""
    return (probabilities / rng.exponential(probabilities)).argmax(-1)


def _mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, out_features)
    )
