"""The latent world model of TD-MPC (Hansen et al. 2022, arXiv:2203.04955) with the heads of FOWM (arXiv:2310.16029)."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from robolearn.types import Batch, Spec

CONVOLUTIONS = ((7, 2), (5, 2), (3, 2), (3, 2))
"""Kernel and stride of each layer of the image encoder."""


class WorldModel(nn.Module):
    """Encoder, latent dynamics, rewards, action values, state value and policy.

    Latents have shape (*, Z), actions (*, A); all leading dimensions are kept.

    Args:
        spec: Features; at most one camera, of at least 39 x 39 pixels.
        latent_dim: Size of a latent, Z.
        image_encoder_hidden_dim: Channels of the image encoder.
        state_encoder_hidden_dim: Hidden width of the encoders of states.
        mlp_dim: Hidden width of everything else.
        q_ensemble_size: Heads of the action value, E.
    """

    def __init__(
        self,
        spec: Spec,
        latent_dim: int,
        image_encoder_hidden_dim: int,
        state_encoder_hidden_dim: int,
        mlp_dim: int,
        q_ensemble_size: int,
    ) -> None:
        super().__init__()
        action_dim = spec.action.shape[0]
        self.encoder = ObservationEncoder(spec, latent_dim, image_encoder_hidden_dim, state_encoder_hidden_dim)
        self.dynamics = nn.Sequential(*_trunk(latent_dim + action_dim, mlp_dim, latent_dim), *_squash(latent_dim))
        self.reward = nn.Sequential(*_trunk(latent_dim + action_dim, mlp_dim, 1))
        self.pi = nn.Sequential(*_trunk(latent_dim, mlp_dim, action_dim))
        self.qs = nn.ModuleList(_value(latent_dim + action_dim, mlp_dim) for _ in range(q_ensemble_size))
        self.v = _value(latent_dim, mlp_dim)
        self.apply(_orthogonal)
        # A fresh model values every action equally.
        for head in (self.reward, *self.qs):
            nn.init.zeros_(cast(nn.Linear, cast(nn.Sequential, head)[-1]).weight)

    def encode(self, observation: Batch) -> Tensor:
        """The latents (*, Z) of observations (*, ...)."""
        return self.encoder(observation)

    def step(self, latent: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The next latents (*, Z) and the rewards (*,) of actions."""
        both = torch.cat([latent, action], dim=-1)
        return self.dynamics(both), self.reward(both).squeeze(-1)

    def next_latent(self, latent: Tensor, action: Tensor) -> Tensor:
        """The next latents (*, Z)."""
        return self.dynamics(torch.cat([latent, action], dim=-1))

    def act(self, latent: Tensor, std: float = 0.0) -> Tensor:
        """The policy's actions (*, A) in (-1, 1), plus Gaussian noise of standard deviation `std`."""
        action = torch.tanh(self.pi(latent))
        return action + std * torch.randn_like(action) if std > 0 else action

    def action_values(self, latent: Tensor, action: Tensor) -> Tensor:
        """The values (E, *) that each head gives actions."""
        both = torch.cat([latent, action], dim=-1)
        return torch.stack([head(both).squeeze(-1) for head in self.qs])

    def value(self, latent: Tensor) -> Tensor:
        """The values (*,) of latents."""
        return self.v(latent).squeeze(-1)


class ObservationEncoder(nn.Module):
    """The mean of one latent for each kind of observation.

    Args:
        spec: Features; several vectors of one kind are concatenated.
        latent_dim: Size of a latent, Z.
        image_dim: Channels of the convolutions.
        state_dim: Hidden width for states.
    """

    def __init__(self, spec: Spec, latent_dim: int, image_dim: int, state_dim: int) -> None:
        super().__init__()
        self.keys = {kind: list(spec.of_kind(kind)) for kind in ("VISUAL", "STATE", "ENV")}
        self.image = self.state = self.environment = None
        if self.keys["VISUAL"]:
            self.image = _image_encoder(spec.observation[self.keys["VISUAL"][0]].shape, latent_dim, image_dim)
        sizes = {kind: sum(spec.observation[key].shape[0] for key in keys) for kind, keys in self.keys.items()}
        if self.keys["STATE"]:
            self.state = _state_encoder(sizes["STATE"], latent_dim, state_dim)
        if self.keys["ENV"]:
            self.environment = _state_encoder(sizes["ENV"], latent_dim, state_dim)

    def forward(self, observation: Batch) -> Tensor:
        """Latents (*, Z) of images (*, C, H, W) and vectors (*, S)."""
        latents = []
        if self.image is not None:
            images = observation[self.keys["VISUAL"][0]]
            latents.append(self.image(images.flatten(0, -4)).unflatten(0, images.shape[:-3]))
        for encoder, kind in ((self.environment, "ENV"), (self.state, "STATE")):
            if encoder is not None:
                latents.append(encoder(torch.cat([observation[key] for key in self.keys[kind]], dim=-1)))
        return torch.stack(latents).mean(0)


def feature_map_size(size: int) -> int:
    """Height of the image encoder's last map for images of this height; below 1 for images that are too small."""
    for kernel, stride in CONVOLUTIONS:
        size = (size - kernel) // stride + 1
    return size


def _image_encoder(shape: tuple[int, ...], latent_dim: int, dim: int) -> nn.Sequential:
    channels, layers = shape[0], []
    for kernel, stride in CONVOLUTIONS:
        layers += [nn.Conv2d(channels, dim, kernel, stride), nn.ReLU()]
        channels = dim
    features = dim * math.prod(map(feature_map_size, shape[1:]))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, latent_dim), *_squash(latent_dim))


def _state_encoder(size: int, latent_dim: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(size, dim), nn.ELU(), nn.Linear(dim, latent_dim), *_squash(latent_dim))


def _trunk(size: int, dim: int, out: int) -> list[nn.Module]:
    hidden = [nn.Linear(size, dim), nn.LayerNorm(dim), nn.Mish(), nn.Linear(dim, dim), nn.LayerNorm(dim), nn.Mish()]
    return [*hidden, nn.Linear(dim, out)]


def _value(size: int, dim: int) -> nn.Sequential:
    hidden = [nn.Linear(size, dim), nn.LayerNorm(dim), nn.Tanh(), nn.Linear(dim, dim), nn.ELU()]
    return nn.Sequential(*hidden, nn.Linear(dim, 1))


def _squash(latent_dim: int) -> list[nn.Module]:
    return [nn.LayerNorm(latent_dim), nn.Sigmoid()]


def _orthogonal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv2d):
        gain = nn.init.calculate_gain("relu") if isinstance(module, nn.Conv2d) else 1.0
        nn.init.orthogonal_(module.weight, gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
