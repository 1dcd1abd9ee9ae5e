"""The one-dimensional U-Net that denoises action sequences (Chi et al. 2023, arXiv:2303.04137, section III.A).

Sequences are (B, T, C) throughout, so that on a GPU every convolution is one matrix product without a change of memory
layout; cuDNN's convolutions took twice the time, half of it for layouts. On a CPU the convolutions are faster.
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SinusoidalEmbedding(nn.Module):
    """Embeds positions (B,) as sines and cosines (B, dim) (Vaswani et al. 2017, arXiv:1706.03762, section 3.5)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, position: Tensor) -> Tensor:
        """Embed positions (B,), of any number type, as (B, dim) floats."""
        half = self.dim // 2
        rate = math.log(10_000) / (half - 1)
        frequencies = torch.exp(-rate * torch.arange(half, device=position.device))
        angles = position[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class Conv(nn.Conv1d):
    """A convolution of sequences (B, T, C) over time."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C_in) to (B, T', C_out)."""
        if x.device.type == "cpu":
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same as one matrix product."""
        (size,), (stride,) = self.kernel_size, self.stride
        if size > 1:
            padding = cast(int, self.padding[0])
            x = F.pad(x, (0, 0, padding, padding))
            last = (x.shape[1] - size) // stride * stride
            # In the order of the weight's entries, so that the weight need not be copied.
            x = torch.stack([x[:, k : k + last + 1 : stride] for k in range(size)], dim=-1).flatten(2)
        return F.linear(x, self.weight.flatten(1), self.bias)


class Upsample1d(nn.ConvTranspose1d):
    """A transposed convolution (kernel 4, stride 2, padding 1) of sequences (B, T, C), which doubles their length."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, T, C) to (B, 2T, C)."""
        if x.device.type == "cpu":
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        return self.product(x)

    def product(self, x: Tensor) -> Tensor:
        """The same as one matrix product."""
        first, second, third, fourth = F.linear(x, self.weight.flatten(1).T).unflatten(-1, (-1, 4)).unbind(-1)
        # Every output is the sum of two of the four: one of its own input and one of its nearest neighbour.
        even = second + F.pad(fourth[:, :-1], (0, 0, 1, 0))
        odd = third + F.pad(first[:, 1:], (0, 0, 0, 1))
        return torch.stack([even, odd], dim=2).flatten(1, 2) + cast(Tensor, self.bias)


class GroupNorm(nn.GroupNorm):
    """GroupNorm of sequences (B, T, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        if not torch.compiler.is_compiling():
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        # Written out, a compiler fuses it with the operations around it and keeps the layout.
        groups = x.float().unflatten(-1, (self.num_groups, -1))
        variance, mean = torch.var_mean(groups, dim=(1, 3), correction=0, keepdim=True)
        normed = (groups - mean) * (variance + self.eps).rsqrt()
        return normed.flatten(2) * self.weight + self.bias


def conv_block(in_channels: int, out_channels: int, kernel_size: int, n_groups: int) -> nn.Sequential:
    """Convolution over time that keeps the length, GroupNorm, Mish."""
    return nn.Sequential(
        Conv(in_channels, out_channels, kernel_size, padding=kernel_size // 2),
        GroupNorm(n_groups, out_channels),
        nn.Mish(),
    )


class ConditionalResidualBlock(nn.Module):
    """Two convolutions with a skip, modulated between them by FiLM (Perez et al. 2018, arXiv:1709.07871).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        cond_dim: Size of the condition.
        kernel_size: Kernel size of both convolutions.
        n_groups: Groups of both GroupNorms.
        use_film_scale_modulation: Scale and bias from the condition; else a bias alone.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        cond_dim: int,
        kernel_size: int,
        n_groups: int,
        use_film_scale_modulation: bool,
    ) -> None:
        super().__init__()
        self.scales = use_film_scale_modulation
        self.conv1 = conv_block(in_channels, out_channels, kernel_size, n_groups)
        self.film = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, out_channels * (2 if self.scales else 1)))
        self.conv2 = conv_block(out_channels, out_channels, kernel_size, n_groups)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else Conv(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Sequences (B, T, C_in) under conditions (B, cond_dim) to (B, T, C_out)."""
        hidden = self.conv1(x)
        film = self.film(cond).unsqueeze(1)
        if self.scales:
            scale, bias = film.chunk(2, dim=-1)
            hidden = scale * hidden + bias
        else:
            hidden = hidden + film
        return self.conv2(hidden) + self.skip(x)


class ConditionalUnet1d(nn.Module):
    """Predicts the noise (or the clean sequence) of a noisy action sequence.

    Args:
        action_dim: Size of an action, A.
        cond_dim: Size of the observation's features.
        down_dims: Channels of each level; the sequence is halved between levels.
        kernel_size: Kernel size of the convolutions in the residual blocks.
        n_groups: Groups of their GroupNorms.
        final_n_groups: Groups of the GroupNorm before the last layer.
        diffusion_step_embed_dim: Size of the embedding of the diffusion step.
        use_film_scale_modulation: See `ConditionalResidualBlock`.
    """

    def __init__(
        self,
        action_dim: int,
        cond_dim: int,
        down_dims: Sequence[int],
        kernel_size: int,
        n_groups: int,
        final_n_groups: int,
        diffusion_step_embed_dim: int,
        use_film_scale_modulation: bool,
    ) -> None:
        super().__init__()
        step_dim = diffusion_step_embed_dim
        self.step_embedding = nn.Sequential(
            SinusoidalEmbedding(step_dim),
            nn.Linear(step_dim, 4 * step_dim),
            nn.Mish(),
            nn.Linear(4 * step_dim, step_dim),
        )

        def block(in_channels: int, out_channels: int) -> ConditionalResidualBlock:
            return ConditionalResidualBlock(
                in_channels,
                out_channels,
                step_dim + cond_dim,
                kernel_size,
                n_groups,
                use_film_scale_modulation,
            )

        dims = [action_dim, *down_dims]
        deepest = dims[-1]
        self.down = nn.ModuleList()
        for level, (outer, inner) in enumerate(zip(dims[:-1], dims[1:], strict=True), start=1):
            is_deepest = level == len(down_dims)
            shorten = nn.Identity() if is_deepest else Conv(inner, inner, kernel_size=3, stride=2, padding=1)
            self.down.append(nn.ModuleList([block(outer, inner), block(inner, inner), shorten]))
        self.mid = nn.ModuleList([block(deepest, deepest), block(deepest, deepest)])
        self.up = nn.ModuleList()
        for outer, inner in reversed(list(zip(dims[1:-1], dims[2:], strict=True))):
            self.up.append(nn.ModuleList([block(2 * inner, outer), block(outer, outer), Upsample1d(outer)]))
        self.final = nn.Sequential(
            conv_block(dims[1], dims[1], kernel_size, final_n_groups), Conv(dims[1], action_dim, kernel_size=1)
        )

    def forward(self, x: Tensor, step: Tensor, cond: Tensor) -> Tensor:
        """Denoise.

        Args:
            x: Noisy actions (B, T, A); T is a multiple of 2 ** (len(down_dims) - 1).
            step: Diffusion steps (B,).
            cond: Features of the observation (B, cond_dim).

        Returns:
            The prediction (B, T, A).
        """
        cond = torch.cat([self.step_embedding(step), cond], dim=-1)
        skips = []
        for level in self.down:
            first, second, shorten = cast(nn.ModuleList, level)
            x = second(first(x, cond), cond)
            skips.append(x)
            x = shorten(x)
        for middle in self.mid:
            x = middle(x, cond)
        for level in self.up:
            first, second, lengthen = cast(nn.ModuleList, level)
            x = torch.cat([x, skips.pop()], dim=-1)
            x = lengthen(second(first(x, cond), cond))
        return self.final(x)


def at_autocast_precision(module: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """The module with its weights cast to autocast's precision once, for calls in a loop.

    Without gradients autocast caches no weight that is reshaped, and would cast all of them in every call.
    """
    if torch.is_grad_enabled() or not torch.amp.is_autocast_available(device.type):
        return module
    if not torch.is_autocast_enabled(device.type):
        return module
    dtype = torch.get_autocast_dtype(device.type)
    weights = {name: value.to(dtype) if value.ndim > 1 else value for name, value in module.named_parameters()}
    return lambda *args: torch.func.functional_call(module, weights, args)
