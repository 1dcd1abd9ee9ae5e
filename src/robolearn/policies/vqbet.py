"""VQ-BeT (Lee et al. 2024, arXiv:2403.03181): a transformer predicts codes of action chunks, and offsets."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from robolearn import rng
from robolearn.errors import UserError
from robolearn.normalize import NormalizationMode
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.length_checks import check_n_action_steps
from robolearn.policies.nn.gpt import Gpt
from robolearn.policies.nn.residual_vq import ActionTokenizer, one_hot, sample
from robolearn.policies.nn.vision import ImageEncoder, check_encoder, crop_images, load_resnet_weights
from robolearn.types import Batch, Depth, Kind, NonNegative, Pixels, PositiveFloat, Rate, Size, Spec, Weight, Window

CODEBOOKS = 2
DEFAULT_NORMALIZATION: dict[Kind, NormalizationMode] = {
    "VISUAL": "IDENTITY",
    "STATE": "MIN_MAX",
    "ENV": "MIN_MAX",
    "ACTION": "MIN_MAX",
}


class Prediction(NamedTuple):
    """What N action tokens predict.

    Attributes:
        logits: Of both codes (N, 2, C).
        codes: Sampled or given (N, 2).
        decoded: Their chunks (N, W, A).
        actions: These with the offsets added (N, W, A).
    """

    logits: Tensor
    codes: Tensor
    decoded: Tensor
    actions: Tensor


class VqbetPolicy(Policy):
    """Learns first a tokenizer of action chunks and then, with it frozen, a transformer that predicts its codes.

    Each observed frame gives the transformer a token of its image, one of its vectors and an action token; further
    action tokens follow the newest frame's. Each action token predicts the chunk that starts there; that of the newest
    frame is executed.

    Args:
        spec: Features of the dataset; exactly one camera.
        n_obs_steps: Observed frames, the newest included.
        n_action_pred_token: Action tokens from the newest frame on.
        action_chunk_size: Actions of each chunk, W.
        n_action_steps: Actions executed of the chunk; null: all, as the reference does.
        normalization_mapping: Normalisation of each kind of feature.
        drop_n_last_frames: Frames at the end of each episode that are not sampled.
        vision_backbone: Name of a torchvision ResNet.
        pretrained_backbone_weights: Its weights: a file, a torchvision name already in torch.hub's folder, or null.
        crop_shape: (h, w) that images are cropped to, or null.
        crop_is_random: Crop at random positions in training; always the centre when acting.
        crop_per_sample: A position for each sample; false: one for the whole batch, as the reference does.
        use_group_norm: GroupNorm in place of BatchNorm in the backbone.
        spatial_softmax_num_keypoints: Keypoints of the image.
        n_vqvae_training_steps: Updates of the tokenizer, before those of the rest.
        vqvae_n_embed: Codes of each of the two codebooks, C.
        vqvae_embedding_dim: Size of a code's vector.
        vqvae_enc_hidden_dim: Hidden width of the tokenizer's encoder and decoder.
        commitment_loss_weight: Weight of the commitment loss, the residuals' distance to their codes.
        codebook_decay: Decay of the running means that the codes are.
        gradient_per_layer: The reconstruction's gradient reaches the encoder once for each codebook, as in the
            reference; false: once.
        gpt_block_size: Longest sequence of the transformer.
        gpt_input_dim: Size of its input tokens.
        gpt_output_dim: Size of its output tokens, D.
        gpt_n_layer: Its blocks.
        gpt_n_head: Its attention heads.
        gpt_hidden_dim: Its width, a multiple of gpt_n_head.
        dropout: Its dropout rate.
        offset_loss_weight: Weight of the actions' L1 error.
        primary_code_loss_weight: Weight of the first code's loss.
        secondary_code_loss_weight: Weight of the second code's loss.
        focal_loss_gamma: Exponent of the focal loss of the codes (Lin et al. 2017, arXiv:1708.02002).
        bet_softmax_temperature: Temperature of the distribution that codes are sampled from.
        sequentially_select: The second code is predicted from the first.
        sample_codes_in_training: Offsets are learned for codes sampled from the prediction, so that every code that
            may be sampled is corrected towards the data; false: for the data's codes alone, as in BeT
            (arXiv:2206.11251, section 3.2), which leaves the others uncorrected.
        do_mask_loss_for_padding: Actions beyond the episode's ends, and chunks that start there, do not count in the
            loss; in the reference they do.

    Raises:
        UserError: Options contradict each other or the spec; its key is the option's.
    """

    def __init__(
        self,
        spec: Spec,
        n_obs_steps: Size = 5,
        n_action_pred_token: Size = 3,
        action_chunk_size: Size = 5,
        n_action_steps: Size | None = None,
        normalization_mapping: Mapping[Kind, NormalizationMode] | None = None,
        drop_n_last_frames: NonNegative = 0,
        vision_backbone: str = "resnet18",
        pretrained_backbone_weights: str | None = None,
        crop_shape: Sequence[Pixels] | None = (84, 84),
        crop_is_random: bool = True,
        crop_per_sample: bool = True,
        use_group_norm: bool = True,
        spatial_softmax_num_keypoints: Size = 32,
        n_vqvae_training_steps: NonNegative = 20000,
        vqvae_n_embed: Size = 16,
        vqvae_embedding_dim: Size = 256,
        vqvae_enc_hidden_dim: Size = 128,
        commitment_loss_weight: Weight = 5.0,
        codebook_decay: Rate = 0.8,
        gradient_per_layer: bool = False,
        gpt_block_size: Size = 500,
        gpt_input_dim: Size = 512,
        gpt_output_dim: Size = 512,
        gpt_n_layer: Depth = 8,
        gpt_n_head: Depth = 8,
        gpt_hidden_dim: Size = 512,
        dropout: Rate = 0.1,
        offset_loss_weight: Weight = 10000.0,
        primary_code_loss_weight: Weight = 5.0,
        secondary_code_loss_weight: Weight = 0.5,
        focal_loss_gamma: Weight = 2.0,
        bet_softmax_temperature: PositiveFloat = 0.1,
        sequentially_select: bool = False,
        sample_codes_in_training: bool = True,
        do_mask_loss_for_padding: bool = True,
    ) -> None:
        super().__init__()
        self.tokenizing: bool | None = None
        n_action_steps = n_action_steps or action_chunk_size
        check_n_action_steps(n_action_steps, action_chunk_size, "policy.action_chunk_size")
        self.camera = _check_images(spec, crop_shape, use_group_norm, pretrained_backbone_weights)
        # One token holds all vectors of a frame.
        self.vectors = [*spec.of_kind("STATE"), *spec.of_kind("ENV")]
        self.frame_tokens = 3 if self.vectors else 2
        tokens = n_obs_steps * self.frame_tokens + n_action_pred_token - 1
        _check_gpt(tokens, gpt_block_size, gpt_hidden_dim, gpt_n_head)

        self.spec = PolicySpec(
            window=Window(
                observation=tuple(range(1 - n_obs_steps, 1)),
                action=tuple(range(1 - n_obs_steps, n_action_pred_token + action_chunk_size - 1)),
            ),
            n_action_steps=n_action_steps,
            normalization_mapping=normalization_mapping or DEFAULT_NORMALIZATION,
            drop_n_last_frames=drop_n_last_frames,
            min_offline_steps=n_vqvae_training_steps,
        )
        self.n_obs_steps, self.future_tokens = n_obs_steps, n_action_pred_token - 1
        self.chunk_size, self.codebook_size = action_chunk_size, vqvae_n_embed
        self.vision_backbone, self.pretrained = vision_backbone, pretrained_backbone_weights
        self.crop_shape = cast("tuple[int, int] | None", tuple(crop_shape) if crop_shape else None)
        self.crop_is_random, self.crop_per_sample = crop_is_random, crop_per_sample
        self.n_vqvae_training_steps, self.commitment_weight = n_vqvae_training_steps, commitment_loss_weight
        self.offset_weight, self.gamma = offset_loss_weight, focal_loss_gamma
        self.code_weights = primary_code_loss_weight, secondary_code_loss_weight
        self.temperature, self.sample_in_training = bet_softmax_temperature, sample_codes_in_training
        self.mask_padding = do_mask_loss_for_padding

        channels, height, width = spec.observation[self.camera].shape
        shape = (channels, *(self.crop_shape or (height, width)))
        self.encoder = ImageEncoder(shape, vision_backbone, use_group_norm, spatial_softmax_num_keypoints)
        self.image_proj = nn.Linear(self.encoder.out_features, gpt_input_dim)
        self.state_proj = None
        if self.vectors:
            self.state_proj = nn.Linear(sum(spec.observation[key].shape[0] for key in self.vectors), gpt_input_dim)
        self.action_token = nn.Parameter(torch.randn(1, 1, gpt_input_dim))
        self.gpt = Gpt(gpt_input_dim, gpt_output_dim, gpt_block_size, gpt_hidden_dim, gpt_n_layer, gpt_n_head, dropout)
        action_dim = spec.action.shape[0]
        self.tokenizer = ActionTokenizer(
            action_chunk_size,
            action_dim,
            vqvae_enc_hidden_dim,
            vqvae_embedding_dim,
            vqvae_n_embed,
            CODEBOOKS,
            codebook_decay,
            gradient_per_layer,
        )
        self._build_heads(gpt_output_dim, action_dim, sequentially_select)
        self.before_step(0)

    def _build_heads(self, dim: int, action_dim: int, sequential: bool) -> None:
        """Linear layers from features (N, dim) to the logits of the codes and the offset of each code's actions."""
        self.code_head = self.primary_head = self.secondary_head = None
        if sequential:
            self.primary_head = nn.Linear(dim, self.codebook_size)
            self.secondary_head = nn.Linear(dim + self.codebook_size, self.codebook_size)
        else:
            self.code_head = nn.Linear(dim, CODEBOOKS * self.codebook_size)
        self.offset_head = nn.Linear(dim, CODEBOOKS * self.codebook_size * self.chunk_size * action_dim)

    def before_step(self, step: int) -> None:
        """The tokenizer learns in the first `n_vqvae_training_steps` updates, everything else in those after."""
        tokenizing = step < self.n_vqvae_training_steps
        if tokenizing == self.tokenizing:
            return
        self.tokenizing = tokenizing
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith("tokenizer.") == tokenizing)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters of both stages; the transformer's biases, norms and positions have no weight decay."""
        groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "tokenizer": []}
        for name, parameter in self.named_parameters():
            if name.startswith("tokenizer."):
                groups["tokenizer"].append(parameter)
            elif name.startswith("gpt.") and (parameter.ndim < 2 or name == "gpt.positions.weight"):
                groups["no_decay"].append(parameter)
            else:
                groups["decay"].append(parameter)
        return groups

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The tokenizer's loss (equation 1) or the transformer's (equation 4), by the stage that `before_step` set."""
        chunks = self.unfold_chunks(batch["action"])
        counts = self.unfold_chunks(~batch["action_is_pad"].unsqueeze(-1)).squeeze(-1)
        counts = counts & counts[:, :1] if self.mask_padding else torch.ones_like(counts)
        loss, metrics = self.tokenizer_loss(chunks, counts) if self.tokenizing else self.bet_loss(batch, chunks, counts)
        return loss, {name: value.detach() for name, value in metrics.items()}

    def unfold_chunks(self, sequence: Tensor) -> Tensor:
        """The chunks (B * action tokens, W, A) of sequences (B, T, A), one for each frame that starts one."""
        return sequence.unfold(1, self.chunk_size, 1).transpose(-1, -2).flatten(0, 1)

    def tokenizer_loss(self, chunks: Tensor, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and commitment of chunks (N, W, A), whose actions count where `counts` (N, W) is true."""
        weights = counts[:, 0].float()
        tokens = self.tokenizer(chunks, weights if self.training else None)
        error = _mean((self.tokenizer.decode(tokens.quantized) - chunks).abs().mean(-1), counts)
        loss = error + self.commitment_weight * _mean(tokens.commitment, weights)
        first, second = tokens.codes.T
        size = self.codebook_size
        used = [_used(first, size, weights), _used(second, size, weights)]
        metrics = {
            "recon_l1_error": error,
            "n_different_codes": torch.stack(used).sum(),
            "n_different_combinations": _used(first * size + second, size**2, weights),
        }
        return loss, metrics

    def bet_loss(self, batch: Batch, chunks: Tensor, counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Focal loss of both codes and L1 error of the corrected actions, where `counts` (N, W) is true."""
        with torch.no_grad():
            targets = self.tokenizer(chunks).codes
        predicted = self.predict(self.features(batch).flatten(0, 1), None if self.sample_in_training else targets)
        weights = counts[:, 0].float()
        logits = predicted.logits.float()
        of_targets = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        focal = -((1 - of_targets.exp()) ** self.gamma) * of_targets
        losses = [_mean(one, weights) for one in focal.unbind(1)]
        classification = losses[0] * self.code_weights[0] + losses[1] * self.code_weights[1]
        errors = predicted.actions - chunks
        offset = _mean(errors.abs().mean(-1), counts)
        chosen = predicted.codes if self.sample_in_training else logits.argmax(-1)
        primary, secondary = ((chosen == targets).float()).unbind(1)
        metrics = {
            "classification_loss": classification,
            "offset_loss": offset,
            "equal_primary_code_rate": _mean(primary, weights),
            "equal_secondary_code_rate": _mean(secondary, weights),
            "vq_action_error": _mean((predicted.decoded - chunks).abs().mean(-1), counts),
            "offset_action_error": offset,
            "action_error_max": (errors.abs() * counts.unsqueeze(-1)).max(),
            "action_mse_error": _mean(errors.square().mean(-1), counts),
        }
        return classification + self.offset_weight * offset, metrics

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        """The chunk (B, W, A) of codes sampled from the prediction of the newest frame's action token."""
        now = self.features(observation)[:, self.n_obs_steps - 1]
        return self.predict(now).actions, {}

    def features(self, batch: Batch) -> Tensor:
        """The transformer's output at the action tokens, (B, n_obs_steps + n_action_pred_token - 1, D)."""
        images = batch[self.camera]
        size, frames = images.shape[:2]
        if self.crop_shape:
            random = self.crop_is_random and self.training
            images = crop_images(images, self.crop_shape, random, self.crop_per_sample)
        tokens = [self.image_proj(self.encoder(images.flatten(0, 1))).unflatten(0, (size, frames))]
        if self.state_proj is not None:
            tokens.append(self.state_proj(torch.cat([batch[key] for key in self.vectors], dim=-1)))
        tokens.append(self.action_token.expand(size, frames, -1).to(tokens[0].dtype))
        observed = torch.stack(tokens, dim=2).flatten(1, 2)
        future = self.action_token.expand(size, self.future_tokens, -1).to(observed.dtype)
        out = self.gpt(torch.cat([observed, future], dim=1))
        of_frames = out[:, self.frame_tokens - 1 : observed.shape[1] : self.frame_tokens]
        return torch.cat([of_frames, out[:, observed.shape[1] :]], dim=1)

    def predict(self, features: Tensor, codes: Tensor | None = None) -> Prediction:
        """Codes and corrected chunks (section 4.3).

        Args:
            features: The transformer's output at action tokens (N, D).
            codes: The codes (N, 2) to decode and correct; None: sample them.
        """
        if self.code_head is not None:
            logits = self.code_head(features).unflatten(-1, (CODEBOOKS, -1))
            codes = self.sample(logits) if codes is None else codes
        else:
            assert self.primary_head is not None
            assert self.secondary_head is not None
            primary = self.primary_head(features)
            first = self.sample(primary) if codes is None else codes[:, 0]
            conditioned = torch.cat([features, one_hot(first, self.codebook_size)], dim=-1)
            secondary = self.secondary_head(conditioned)
            logits = torch.stack([primary, secondary], dim=1)
            codes = torch.stack([first, self.sample(secondary)], dim=1) if codes is None else codes
        with torch.no_grad():
            decoded = self.tokenizer.decode(self.tokenizer.embed(codes))
        offsets = self.offset_head(features).unflatten(-1, (CODEBOOKS, self.codebook_size, self.chunk_size, -1))
        chosen = codes[:, :, None, None, None].expand(-1, -1, 1, *offsets.shape[-2:])
        correction = offsets.gather(2, chosen).squeeze(2).sum(1)
        return Prediction(logits, codes, decoded, decoded + correction)

    def sample(self, logits: Tensor) -> Tensor:
        """Sample a code (*) from logits (*, C)."""
        return sample((logits.float() / self.temperature).softmax(-1))

    def load_pretrained(self) -> None:
        """Load the backbone's weights where a file or name of them was given."""
        if self.pretrained:
            load_resnet_weights(self.encoder.backbone, self.vision_backbone, self.pretrained)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / rng.all_reduce_mean(weights.sum()).clamp(min=1)


def _used(codes: Tensor, size: int, weights: Tensor) -> Tensor:
    """How many of `size` codes are among those (N,) that count."""
    return (one_hot(codes, size) * weights.unsqueeze(-1)).amax(0).sum()


def _check_gpt(tokens: int, block_size: int, dim: int, heads: int) -> None:
    if dim % heads:
        message = f"policy.gpt_hidden_dim={dim} must be a multiple of policy.gpt_n_head={heads}."
        raise UserError(message, key="policy.gpt_hidden_dim")
    if tokens > block_size:
        raise UserError(
            f"policy.gpt_block_size={block_size} is less than the {tokens} tokens of policy.n_obs_steps and "
            "policy.n_action_pred_token",
            key="policy.gpt_block_size",
            fix="raise it",
        )


def _check_images(spec: Spec, crop_shape: Sequence[int] | None, use_group_norm: bool, pretrained: str | None) -> str:
    """The one camera."""
    cameras = spec.of_kind("VISUAL")
    if len(cameras) != 1:
        others = ",".join(list(cameras)[1:])
        raise UserError(
            f"policy=vqbet needs exactly one camera, the dataset has {', '.join(cameras) or 'none'}",
            key="dataset.exclude" if others else "policy",
            fix=f"set dataset.exclude=[{others}], say" if others else "choose another dataset, or another policy",
        )
    ((camera, feature),) = cameras.items()
    check_encoder(feature.shape, crop_shape, use_group_norm, pretrained)
    return camera
