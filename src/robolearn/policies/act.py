"""Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705): a conditional VAE of action chunks."""

import math
from collections.abc import Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robolearn import rng
from robolearn.errors import UserError
from robolearn.normalize import Mode
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.nn.transformer import (
    Activation,
    Layer,
    TransformerDecoder,
    TransformerEncoder,
    image_sinusoids,
    sinusoids,
)
from robolearn.policies.nn.vision import check_resnet, load_resnet_weights, resnet_body
from robolearn.types import Batch, Kind, Spec, Window

DEFAULT_NORMALIZATION: dict[Kind, Mode] = {
    "VISUAL": "MEAN_STD",
    "STATE": "MEAN_STD",
    "ENV": "MEAN_STD",
    "ACTION": "MEAN_STD",
}


class ActPolicy(Policy):
    """Predicts a chunk of actions from one frame, and in training from a latent that encodes the chunk to predict.

    The latent tells the demonstrator's style; when acting it is 0, the mean of its prior.

    Args:
        spec: What is observed and commanded.
        n_obs_steps: Frames observed; must be 1.
        chunk_size: Actions predicted at once.
        n_action_steps: Actions executed of each chunk, at most chunk_size.
        normalization_mapping: Scale of each kind of feature.
        vision_backbone: Name of a torchvision ResNet, one for all cameras; its BatchNorm is frozen.
        pretrained_backbone_weights: Its weights: a file, a torchvision name already in torch.hub's folder, or null.
        replace_final_stride_with_dilation: A feature map twice as fine, from resnet50 on.
        pre_norm: Transformer layers normalise first, else last.
        dim_model: Width of the transformer's tokens; a multiple of 4 and of n_heads.
        n_heads: Attention heads.
        dim_feedforward: Hidden width of the transformer's linear layers.
        feedforward_activation: Between them.
        n_encoder_layers: Layers that mix what is observed.
        n_decoder_layers: Layers that make actions of it; the published code has 7 and uses 1.
        use_vae: Learn with the latent; else it is always 0.
        latent_dim: Numbers of the latent.
        n_vae_encoder_layers: Layers of the encoder of action chunks.
        temporal_ensemble_coeff: m of the weights exp(-m i) with which the agent averages overlapping chunks, or null.
        dropout: Of the transformers.
        kl_weight: Of the latent's divergence from its prior in the loss.
        average_over_padding: The L1 loss is averaged over all actions, masked ones too, as the reference does.

    Raises:
        UserError: Options contradict each other or the spec; the message names them.
    """

    def __init__(
        self,
        spec: Spec,
        n_obs_steps: int = 1,
        chunk_size: int = 100,
        n_action_steps: int = 100,
        normalization_mapping: Mapping[Kind, Mode] | None = None,
        vision_backbone: str = "resnet18",
        pretrained_backbone_weights: str | None = None,
        replace_final_stride_with_dilation: bool = False,
        pre_norm: bool = False,
        dim_model: int = 512,
        n_heads: int = 8,
        dim_feedforward: int = 3200,
        feedforward_activation: Activation = "relu",
        n_encoder_layers: int = 4,
        n_decoder_layers: int = 1,
        use_vae: bool = True,
        latent_dim: int = 32,
        n_vae_encoder_layers: int = 4,
        temporal_ensemble_coeff: float | None = None,
        dropout: float = 0.1,
        kl_weight: float = 10.0,
        average_over_padding: bool = False,
    ) -> None:
        super().__init__()
        _check_lengths(n_obs_steps, chunk_size, n_action_steps, temporal_ensemble_coeff)
        _check_sizes(
            n_heads=n_heads,
            dim_feedforward=dim_feedforward,
            n_encoder_layers=n_encoder_layers,
            n_decoder_layers=n_decoder_layers,
            latent_dim=latent_dim,
            n_vae_encoder_layers=n_vae_encoder_layers,
        )
        _check_model(dim_model, n_heads, dropout, kl_weight)
        check_resnet(vision_backbone)
        _check_spec(spec)

        self.spec = PolicySpec(
            window=Window(observation=(0,), action=tuple(range(chunk_size))),
            n_action_steps=n_action_steps,
            normalization_mapping=normalization_mapping or DEFAULT_NORMALIZATION,
            temporal_ensemble_coeff=temporal_ensemble_coeff,
        )
        self.vision_backbone, self.pretrained = vision_backbone, pretrained_backbone_weights
        self.kl_weight, self.averages_over_padding = kl_weight, average_over_padding
        self.latent_dim = latent_dim
        self.cameras, self.states, self.environments = (list(spec.of_kind(k)) for k in ("VISUAL", "STATE", "ENV"))
        state_dim, environment_dim = (
            sum(spec.observation[key].shape[0] for key in keys) for keys in (self.states, self.environments)
        )
        action_dim = spec.action.shape[0]

        layer = partial(Layer, dim_model, n_heads, dim_feedforward, feedforward_activation, dropout, pre_norm)
        self.vae = None
        if use_vae:
            encoder = TransformerEncoder(layer, n_vae_encoder_layers, dim_model, pre_norm)
            self.vae = ChunkEncoder(encoder, state_dim, action_dim, chunk_size, dim_model, latent_dim)
        self.backbone = None
        if self.cameras:
            self.backbone = resnet_body(vision_backbone, "frozen", replace_final_stride_with_dilation)
            channels = cast(int, _last_conv(self.backbone).out_channels)
            self.image_proj = nn.Conv2d(channels, dim_model, kernel_size=1)
            stride = 16 if replace_final_stride_with_dilation else 32
            shapes = [spec.observation[key].shape for key in self.cameras]
            maps = [image_sinusoids(-(-h // stride), -(-w // stride), dim_model) for _, h, w in shapes]
            self.register_buffer("image_positions", torch.cat(maps), persistent=False)
        self.latent_proj = nn.Linear(latent_dim, dim_model)
        self.state_proj = nn.Linear(state_dim, dim_model) if self.states else None
        self.environment_proj = nn.Linear(environment_dim, dim_model) if self.environments else None
        n_vectors = 1 + bool(self.states) + bool(self.environments)
        self.vector_positions = nn.Parameter(torch.randn(n_vectors, dim_model))
        self.encoder = TransformerEncoder(layer, n_encoder_layers, dim_model, pre_norm)
        self.queries = nn.Parameter(torch.randn(chunk_size, dim_model))
        self.decoder = TransformerDecoder(partial(layer, crosses=True), n_decoder_layers, dim_model)
        self.head = nn.Linear(dim_model, action_dim)
        for weights in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if weights.dim() > 1:
                nn.init.xavier_uniform_(weights)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 distance of the chunks, and the latent's divergence from a standard normal (algorithm 1)."""
        actions, padding = batch["action"], batch["action_is_pad"]
        divergence = None
        if self.vae is None:
            latent = self.prior_mean(actions)
        else:
            mean, log_variance = self.vae(self.joined(batch, self.states), actions, padding)
            latent = mean + (log_variance / 2).exp() * rng.randn(mean.shape, mean.device, mean.dtype)
            # Kingma & Welling 2014, arXiv:1312.6114, appendix B
            divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(-1).mean()
        errors = F.l1_loss(self.decode(batch, latent), actions, reduction="none")
        valid = ~padding.unsqueeze(-1)
        if self.averages_over_padding:
            l1 = (errors * valid).mean()
        else:
            l1 = (errors * valid).sum() / (rng.all_reduce_mean(valid.sum()) * actions.shape[-1]).clamp(min=1)
        if divergence is None:
            return l1, {"l1_loss": l1.detach()}
        loss = l1 + self.kl_weight * divergence
        return loss, {"l1_loss": l1.detach(), "kld_loss": divergence.detach()}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        """The chunk (B, chunk_size, A) at the latent's prior mean (algorithm 2)."""
        return self.decode(observation, self.prior_mean(next(iter(observation.values())))), {}

    def prior_mean(self, like: Tensor) -> Tensor:
        """Latents (B, latent_dim) of 0 for a batch of some tensor's size, on its device."""
        return torch.zeros(len(like), self.latent_dim, device=like.device)

    def decode(self, batch: Batch, latent: Tensor) -> Tensor:
        """The chunk (B, chunk_size, A) for the newest frame and latents (B, latent_dim)."""
        vectors = [self.latent_proj(latent)]
        for project, keys in ((self.state_proj, self.states), (self.environment_proj, self.environments)):
            if project is not None:
                vectors.append(project(self.joined(batch, keys)))
        tokens, positions = torch.stack(vectors, dim=1), self.vector_positions
        if self.backbone is not None:
            tokens = torch.cat([tokens, self.encode_images(batch)], dim=1)
            positions = torch.cat([positions, cast(Tensor, self.image_positions)])
        memory = self.encoder(tokens, positions)
        return self.head(self.decoder(self.queries, memory, positions))

    def encode_images(self, batch: Batch) -> Tensor:
        """One token for each position of each camera's feature map, (B, tokens, D).

        As published, cameras have no embedding of their own: they are told apart by what they show.
        """
        images = [batch[key][:, -1] for key in self.cameras]
        if len({image.shape for image in images}) == 1:  # one pass is faster than one for each
            maps = self._map(torch.cat(images)).chunk(len(images))
        else:
            maps = [self._map(image) for image in images]
        return torch.cat([features.flatten(2).transpose(1, 2) for features in maps], dim=1)

    def _map(self, images: Tensor) -> Tensor:
        assert self.backbone is not None
        return self.image_proj(self.backbone(images))

    @staticmethod
    def joined(batch: Batch, keys: list[str]) -> Tensor | None:
        """The newest frame of some vectors, one after the other (B, D); None without keys."""
        return torch.cat([batch[key][:, -1] for key in keys], dim=-1) if keys else None

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The backbone in a group of its own, as the paper trains it."""
        backbone = [] if self.backbone is None else list(self.backbone.parameters())
        own = {id(p) for p in backbone}
        return {
            "policy": [p for p in self.parameters() if p.requires_grad and id(p) not in own],
            "backbone": [p for p in backbone if p.requires_grad],
        }

    def load_pretrained(self) -> None:
        """Load the backbone's weights where a file or name of them was given."""
        if self.pretrained and self.backbone is not None:
            load_resnet_weights(self.backbone, self.vision_backbone, self.pretrained)


class ChunkEncoder(nn.Module):
    """The VAE's encoder: a transformer over a class token, the robot's state and the chunk of actions.

    Args:
        encoder: The transformer.
        state_dim: Numbers of the robot's state; 0: it is not observed and has no token.
        action_dim: Numbers of an action, A.
        chunk_size: Actions of a chunk, T.
        dim: The transformer's width.
        latent_dim: Numbers of the latent, Z.
    """

    def __init__(
        self, encoder: TransformerEncoder, state_dim: int, action_dim: int, chunk_size: int, dim: int, latent_dim: int
    ) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.randn(1, dim))
        self.state_proj = nn.Linear(state_dim, dim) if state_dim else None
        self.action_proj = nn.Linear(action_dim, dim)
        self.encoder = encoder
        self.head = nn.Linear(dim, 2 * latent_dim)
        tokens = chunk_size + 1 + bool(state_dim)
        self.register_buffer("positions", sinusoids(torch.arange(tokens), dim), persistent=False)

    def forward(self, state: Tensor | None, actions: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance (B, Z) of the latent.

        Args:
            state: (B, S), None when it is not observed.
            actions: (B, T, A).
            padding: Actions beyond the episode's end are true (B, T), and not looked at.
        """
        tokens = [self.cls.expand(len(actions), 1, -1)]
        if self.state_proj is not None:
            tokens.append(self.state_proj(state).unsqueeze(1))
        padding = F.pad(padding, (len(tokens), 0), value=False)
        tokens.append(self.action_proj(actions))
        encoded = self.encoder(torch.cat(tokens, dim=1), cast(Tensor, self.positions), padding)
        mean, log_variance = self.head(encoded[:, 0]).float().chunk(2, dim=-1)
        return mean, log_variance


def _last_conv(body: nn.Module) -> nn.Conv2d:
    return [module for module in body.modules() if isinstance(module, nn.Conv2d)][-1]


def _check_lengths(n_obs_steps: int, chunk_size: int, n_action_steps: int, coeff: float | None) -> None:
    if n_obs_steps != 1:
        raise UserError(f"policy.n_obs_steps={n_obs_steps} must be 1, because ACT acts on the newest frame alone.")
    if chunk_size < 1 or n_action_steps < 1:
        raise UserError(
            f"policy.chunk_size={chunk_size} and policy.n_action_steps={n_action_steps} must be at least 1."
        )
    if n_action_steps > chunk_size:
        raise UserError(
            f"policy.n_action_steps={n_action_steps} is more than the policy.chunk_size={chunk_size} actions "
            "predicted; lower it or raise policy.chunk_size."
        )
    if coeff is None:
        return
    if not math.isfinite(coeff):
        raise UserError(f"policy.temporal_ensemble_coeff={coeff} must be a finite number or null.")
    if n_action_steps != 1:
        raise UserError(
            f"policy.temporal_ensemble_coeff={coeff} needs a chunk predicted at every step; set "
            f"policy.n_action_steps=1 (now {n_action_steps}) or policy.temporal_ensemble_coeff=null."
        )


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"policy.{name}={size} must be at least 1.")


def _check_model(dim_model: int, n_heads: int, dropout: float, kl_weight: float) -> None:
    if dim_model < 1 or dim_model % 4 or dim_model % n_heads:
        raise UserError(
            f"policy.dim_model={dim_model} must be a multiple of 4, for its position embeddings, and of "
            f"policy.n_heads={n_heads}."
        )
    if not 0 <= dropout < 1:
        raise UserError(f"policy.dropout={dropout} must be at least 0 and less than 1.")
    if not (kl_weight >= 0 and math.isfinite(kl_weight)):
        raise UserError(f"policy.kl_weight={kl_weight} must not be negative.")


def _check_spec(spec: Spec) -> None:
    cameras = spec.of_kind("VISUAL")
    if not cameras and not spec.of_kind("ENV"):
        raise UserError(
            f"policy=act needs a camera or observation.environment_state; the dataset has "
            f"{', '.join(spec.observation) or 'no observation'} only."
        )
    for key, feature in cameras.items():
        if feature.shape[0] != 3:
            raise UserError(
                f"policy=act needs images of 3 channels, {key} has {feature.shape[0]}; set dataset.exclude=[{key}]."
            )
