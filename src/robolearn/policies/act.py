"""Action Chunking with Transformers (Zhao et al. 2023, arXiv:2304.13705): a conditional VAE of action chunks."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, cast

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from robolearn import rng
from robolearn.errors import UserError
from robolearn.normalize import NormalizationMode
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.length_checks import check_n_action_steps, check_n_obs_steps
from robolearn.policies.nn.transformer import (
    Activation,
    TransformerDecoder,
    TransformerEncoder,
    TransformerLayer,
    image_sinusoids,
    sinusoids,
)
from robolearn.policies.nn.vision import check_resnet, load_resnet_weights, resnet_body
from robolearn.types import Batch, Depth, Kind, Rate, Size, Spec, Weight, Window

DEFAULT_NORMALIZATION: dict[Kind, NormalizationMode] = {
    "VISUAL": "MEAN_STD",
    "STATE": "MEAN_STD",
    "ENV": "MEAN_STD",
    "ACTION": "MEAN_STD",
}


class ActPolicy(Policy):
    """Predicts a chunk of actions from one frame and, in training, from a latent that encodes the chunk itself.

    The latent stands for the style of a demonstration; `act` sets it to 0, the mean of its prior.

    Args:
        spec: Features of the dataset; images (3, H, W).
        n_obs_steps: Observed frames; must be 1.
        chunk_size: Actions predicted at once, T.
        n_action_steps: Actions executed of each chunk, at most chunk_size.
        normalization_mapping: Normalisation of each kind of feature.
        vision_backbone: Name of a torchvision ResNet, one for all cameras; its BatchNorm is frozen.
        pretrained_backbone_weights: Its weights: a file, a torchvision name already in torch.hub's folder, or null.
        replace_final_stride_with_dilation: Double the resolution of the feature map; from resnet50 on.
        pre_norm: LayerNorm before each sublayer of the transformers, else after it.
        dim_model: Width of the transformers' tokens, D; a multiple of 4 and of n_heads.
        n_heads: Attention heads.
        dim_feedforward: Hidden width of the transformers' linear layers.
        feedforward_activation: Activation between them.
        n_encoder_layers: Layers of the transformer's encoder.
        n_decoder_layers: Layers of its decoder; the published code has 7 and uses 1.
        use_vae: Learn with the latent; else it is always 0.
        latent_dim: Size of the latent, Z.
        n_vae_encoder_layers: Layers of the encoder of action chunks.
        temporal_ensemble_coeff: m of the weights exp(-m i) with which the agent averages overlapping chunks, or null.
        dropout: Dropout rate of the transformers.
        kl_weight: Weight of the latent's KL divergence from its prior in the loss.
        average_over_padding: Divide the masked L1 loss by the number of all actions, as the reference does.

    Raises:
        UserError: Options contradict each other or the spec; its key is the option's.
    """

    def __init__(
        self,
        spec: Spec,
        n_obs_steps: int = 1,
        chunk_size: Size = 100,
        n_action_steps: Size = 100,
        normalization_mapping: Mapping[Kind, NormalizationMode] | None = None,
        vision_backbone: str = "resnet18",
        pretrained_backbone_weights: str | None = None,
        replace_final_stride_with_dilation: bool = False,
        pre_norm: bool = False,
        dim_model: Size = 512,
        n_heads: Depth = 8,
        dim_feedforward: Size = 3200,
        feedforward_activation: Activation = "relu",
        n_encoder_layers: Depth = 4,
        n_decoder_layers: Depth = 1,
        use_vae: bool = True,
        latent_dim: Size = 32,
        n_vae_encoder_layers: Depth = 4,
        temporal_ensemble_coeff: Annotated[float, Interval(ge=-1e3, le=1e3)] | None = None,
        dropout: Rate = 0.1,
        kl_weight: Weight = 10.0,
        average_over_padding: bool = False,
    ) -> None:
        super().__init__()
        check_n_obs_steps("ACT", n_obs_steps)
        check_n_action_steps(n_action_steps, chunk_size)
        _check_ensemble(temporal_ensemble_coeff, n_action_steps)
        _check_width(dim_model, n_heads)
        check_resnet(vision_backbone)
        _check_spec(spec)

        self.spec = PolicySpec(
            window=Window(observation=(0,), action=tuple(range(chunk_size))),
            n_action_steps=n_action_steps,
            normalization_mapping=normalization_mapping or DEFAULT_NORMALIZATION,
            temporal_ensemble_coeff=temporal_ensemble_coeff,
        )
        self.vision_backbone, self.pretrained = vision_backbone, pretrained_backbone_weights
        self.kl_weight, self.mean_over_padding = kl_weight, average_over_padding
        self.latent_dim = latent_dim
        self.cameras, self.states, self.environments = (list(spec.of_kind(k)) for k in ("VISUAL", "STATE", "ENV"))
        state_dim, environment_dim = (
            sum(spec.observation[key].shape[0] for key in keys) for keys in (self.states, self.environments)
        )
        action_dim = spec.action.shape[0]

        layer = partial(
            TransformerLayer, dim_model, n_heads, dim_feedforward, feedforward_activation, dropout, pre_norm
        )
        self.vae = None
        if use_vae:
            encoder = TransformerEncoder(layer, n_vae_encoder_layers, dim_model, pre_norm)
            self.vae = ChunkEncoder(encoder, state_dim, action_dim, chunk_size, dim_model, latent_dim)
        self.backbone = None
        if self.cameras:
            self._build_backbone(spec, dim_model, replace_final_stride_with_dilation)
        self.latent_proj = nn.Linear(latent_dim, dim_model)
        self.state_proj = nn.Linear(state_dim, dim_model) if self.states else None
        self.environment_proj = nn.Linear(environment_dim, dim_model) if self.environments else None
        n_vectors = 1 + bool(self.states) + bool(self.environments)
        self.vector_positions = nn.Parameter(torch.randn(n_vectors, dim_model))
        self.encoder = TransformerEncoder(layer, n_encoder_layers, dim_model, pre_norm)
        self.queries = nn.Parameter(torch.randn(chunk_size, dim_model))
        self.decoder = TransformerDecoder(partial(layer, cross_attention=True), n_decoder_layers, dim_model)
        self.head = nn.Linear(dim_model, action_dim)
        for weights in [*self.encoder.parameters(), *self.decoder.parameters()]:
            if weights.dim() > 1:
                nn.init.xavier_uniform_(weights)

    def _build_backbone(self, spec: Spec, dim_model: int, dilate: bool) -> None:
        """The ResNet of all cameras, its projection to tokens, and the position embedding of each token."""
        self.backbone = resnet_body(self.vision_backbone, "frozen", dilate)
        channels = cast(int, _last_conv(self.backbone).out_channels)
        self.image_proj = nn.Conv2d(channels, dim_model, kernel_size=1)
        stride = 16 if dilate else 32
        shapes = [spec.observation[key].shape for key in self.cameras]
        maps = [image_sinusoids(-(-h // stride), -(-w // stride), dim_model) for _, h, w in shapes]
        self.register_buffer("image_positions", torch.cat(maps), persistent=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """L1 distance of the chunks, and the latent's divergence from a standard normal (algorithm 1)."""
        actions, padding = batch["action"], batch["action_is_pad"]
        divergence = None
        if self.vae is None:
            latent = self.prior_mean(actions)
        else:
            mean, log_variance = self.vae(self.concatenate(batch, self.states), actions, padding)
            latent = mean + (log_variance / 2).exp() * rng.randn(mean.shape, mean.device, mean.dtype)
            # Kingma & Welling 2014, arXiv:1312.6114, appendix B
            divergence = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(-1).mean()
        errors = F.l1_loss(self.decode(batch, latent), actions, reduction="none")
        valid = ~padding.unsqueeze(-1)
        if self.mean_over_padding:
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
        """Latents (B, Z) of 0, with the batch size and device of a tensor."""
        return torch.zeros(len(like), self.latent_dim, device=like.device)

    def decode(self, batch: Batch, latent: Tensor) -> Tensor:
        """The chunk (B, chunk_size, A) for the newest frame and latents (B, Z)."""
        vectors = [self.latent_proj(latent)]
        for project, keys in ((self.state_proj, self.states), (self.environment_proj, self.environments)):
            if project is not None:
                vectors.append(project(self.concatenate(batch, keys)))
        tokens, positions = torch.stack(vectors, dim=1), self.vector_positions
        if self.backbone is not None:
            tokens = torch.cat([tokens, self.encode_images(batch)], dim=1)
            positions = torch.cat([positions, cast(Tensor, self.image_positions)])
        memory = self.encoder(tokens, positions)
        return self.head(self.decoder(self.queries, memory, positions))

    def encode_images(self, batch: Batch) -> Tensor:
        """One token for each position of each camera's feature map, (B, tokens, D).

        As published, cameras have no embedding of their own: only their content distinguishes them.
        """
        images = [batch[key][:, -1] for key in self.cameras]
        if len({image.shape for image in images}) == 1:  # one pass is faster than one for each
            maps = self.feature_map(torch.cat(images)).chunk(len(images))
        else:
            maps = [self.feature_map(image) for image in images]
        return torch.cat([features.flatten(2).transpose(1, 2) for features in maps], dim=1)

    def feature_map(self, images: Tensor) -> Tensor:
        """The backbone's features of images (N, 3, H, W), projected to the tokens' width (N, D, H', W')."""
        assert self.backbone is not None
        return self.image_proj(self.backbone(images))

    @staticmethod
    def concatenate(batch: Batch, keys: list[str]) -> Tensor | None:
        """The newest frame of some vectors, concatenated (B, D); None without keys."""
        return torch.cat([batch[key][:, -1] for key in keys], dim=-1) if keys else None

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The backbone in a group of its own, which the paper trains at another learning rate."""
        backbone = [] if self.backbone is None else list(self.backbone.parameters())
        excluded = {id(p) for p in backbone}
        return {
            "policy": [p for p in self.parameters() if p.requires_grad and id(p) not in excluded],
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
        state_dim: Size of the robot's state, S; 0: it is not observed and has no token.
        action_dim: Size of an action, A.
        chunk_size: Actions of a chunk, T.
        dim: The transformer's width, D.
        latent_dim: Size of the latent, Z.
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
        """Mean and log variance (B, Z) of the latent.

        Args:
            state: (B, S), None when it is not observed.
            actions: (B, T, A).
            padding: True for actions beyond the episode's end (B, T), which are not attended to.
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


def _check_ensemble(coeff: float | None, n_action_steps: int) -> None:
    if coeff is not None and n_action_steps != 1:
        raise UserError(
            f"policy.temporal_ensemble_coeff={coeff} needs a chunk predicted at every step",
            key="policy.temporal_ensemble_coeff",
            fix=f"set policy.n_action_steps=1 (now {n_action_steps}) or policy.temporal_ensemble_coeff=null",
        )


def _check_width(dim_model: int, n_heads: int) -> None:
    if dim_model % 4 or dim_model % n_heads:
        raise UserError(
            f"policy.dim_model={dim_model} must be a multiple of 4, for its position embeddings, and of "
            f"policy.n_heads={n_heads}.",
            key="policy.dim_model",
        )


def _check_spec(spec: Spec) -> None:
    cameras = spec.of_kind("VISUAL")
    if not cameras and not spec.of_kind("ENV"):
        raise UserError(
            f"policy=act needs a camera or observation.environment_state; the dataset has "
            f"{', '.join(spec.observation) or 'no observation'} only.",
            key="policy",
        )
    for key, feature in cameras.items():
        if feature.shape[0] != 3:
            raise UserError(
                f"policy=act needs images of 3 channels, {key} has {feature.shape[0]}; set dataset.exclude=[{key}].",
                key=key,
            )
