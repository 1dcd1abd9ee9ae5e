"""Diffusion Policy (Chi et al. 2023, arXiv:2303.04137): denoise an action sequence given observations."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, cast

import torch
from annotated_types import Interval, MinLen, MultipleOf
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from robolearn import rng
from robolearn.errors import UserError
from robolearn.normalize import NormalizationMode
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.nn.unet import ConditionalUnet1d, at_autocast_precision
from robolearn.policies.nn.vision import ImageEncoder, check_encoder, crop_images, load_resnet_weights
from robolearn.types import Batch, Depth, Fraction, Kind, NonNegative, Pixels, PositiveFloat, Size, Spec, Window

SCHEDULERS = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}
DEFAULT_NORMALIZATION: dict[Kind, NormalizationMode] = {
    "VISUAL": "MEAN_STD",
    "STATE": "MIN_MAX",
    "ENV": "MIN_MAX",
    "ACTION": "MIN_MAX",
}


class DiffusionPolicy(Policy):
    """Learns to remove noise from action sequences, and acts by denoising a sequence of pure noise.

    The trajectory of `horizon` actions starts at the oldest of the `n_obs_steps` observed frames; of it, the
    `n_action_steps` actions from the newest frame on are executed.

    Args:
        spec: Features of the dataset.
        n_obs_steps: Observed frames, the newest included.
        horizon: Length of the denoised trajectory, T; a multiple of 2 ** len(down_dims).
        n_action_steps: Actions executed of each trajectory, at most horizon - n_obs_steps + 1.
        normalization_mapping: Normalisation of each kind of feature.
        drop_n_last_frames: Frames at the end of each episode that are not sampled; null: horizon - n_action_steps -
            n_obs_steps + 1, so that no executed action is padding.
        vision_backbone: Name of a torchvision ResNet.
        pretrained_backbone_weights: Its weights: a file, a torchvision name already in torch.hub's folder, or null.
        crop_shape: (h, w) that images are cropped to, or null.
        crop_is_random: Crop at random positions in training; always the centre when acting.
        crop_per_sample: A position for each sample; false: one for the whole batch, as the reference does.
        use_group_norm: GroupNorm in place of BatchNorm in the backbone.
        spatial_softmax_num_keypoints: Keypoints of each image.
        use_separate_rgb_encoder_per_camera: An encoder for each camera; else one for all.
        down_dims: Channels of each level of the U-Net.
        kernel_size: Kernel size of its convolutions over time, odd.
        n_groups: Groups of its GroupNorms.
        final_n_groups: Groups of the GroupNorm before the last layer; null: n_groups; the reference always has 8 there.
        diffusion_step_embed_dim: Size of the embedding of the diffusion step.
        use_film_scale_modulation: The observation scales and shifts the U-Net's features; else it only shifts them.
        noise_scheduler_type: DDPM (Ho et al. 2020) or DDIM (Song et al. 2021).
        num_train_timesteps: Diffusion steps.
        beta_schedule: A schedule of diffusers; DDIM has no sigmoid.
        beta_start: First beta of all schedules but squaredcos_cap_v2.
        beta_end: Last beta of these.
        prediction_type: The network predicts the noise ("epsilon") or the clean trajectory ("sample").
        clip_sample: Clip the clean trajectory that each denoising step implies.
        clip_sample_range: Largest magnitude of the clipped trajectory.
        num_inference_steps: Denoising steps when acting; null: num_train_timesteps.
        do_mask_loss_for_padding: Actions beyond the episode's end do not count in the loss.
        average_over_padding: Divide the masked loss by the number of all actions, as the reference does.
        noise_samples_per_observation: Diffusion steps, with noise of their own, that one encoding of a sample's
            observation is trained on; more of them share the cost of the images.

    Raises:
        UserError: Options contradict each other or the spec; its key is the option's.
    """

    alphas_cumprod: Tensor

    def __init__(
        self,
        spec: Spec,
        n_obs_steps: Size = 2,
        horizon: Size = 16,
        n_action_steps: Size = 8,
        normalization_mapping: Mapping[Kind, NormalizationMode] | None = None,
        drop_n_last_frames: NonNegative | None = None,
        vision_backbone: str = "resnet18",
        pretrained_backbone_weights: str | None = None,
        crop_shape: Sequence[Pixels] | None = (84, 84),
        crop_is_random: bool = True,
        crop_per_sample: bool = True,
        use_group_norm: bool = True,
        spatial_softmax_num_keypoints: Size = 32,
        use_separate_rgb_encoder_per_camera: bool = False,
        down_dims: Annotated[Sequence[Size], MinLen(1)] = (512, 1024, 2048),
        kernel_size: Depth = 5,
        n_groups: Size = 8,
        final_n_groups: Size | None = None,
        diffusion_step_embed_dim: Annotated[int, Interval(ge=4, le=65_536), MultipleOf(2)] = 128,
        use_film_scale_modulation: bool = True,
        noise_scheduler_type: Literal["DDPM", "DDIM"] = "DDPM",
        num_train_timesteps: Size = 100,
        beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "squaredcos_cap_v2",
        beta_start: Fraction = 1e-4,
        beta_end: Fraction = 0.02,
        prediction_type: Literal["epsilon", "sample"] = "epsilon",
        clip_sample: bool = True,
        clip_sample_range: PositiveFloat = 1.0,
        num_inference_steps: Size | None = None,
        do_mask_loss_for_padding: bool = False,
        average_over_padding: bool = False,
        noise_samples_per_observation: Depth = 1,
    ) -> None:
        super().__init__()
        final_n_groups = n_groups if final_n_groups is None else final_n_groups
        _check_lengths(horizon, n_obs_steps, n_action_steps, down_dims)
        _check_unet(down_dims, kernel_size, n_groups, final_n_groups)
        _check_inference_steps(num_inference_steps, num_train_timesteps)
        _check_betas(noise_scheduler_type, beta_schedule, beta_start, beta_end)
        _check_images(spec, crop_shape, use_group_norm, pretrained_backbone_weights)

        derived = horizon - n_action_steps - n_obs_steps + 1
        self.spec = PolicySpec(
            window=Window(
                observation=tuple(range(1 - n_obs_steps, 1)),
                action=tuple(range(1 - n_obs_steps, horizon - n_obs_steps + 1)),
            ),
            n_action_steps=n_action_steps,
            normalization_mapping=normalization_mapping or DEFAULT_NORMALIZATION,
            drop_n_last_frames=derived if drop_n_last_frames is None else drop_n_last_frames,
        )
        self.n_obs_steps, self.horizon, self.action_dim = n_obs_steps, horizon, spec.action.shape[0]
        self.cameras = list(spec.of_kind("VISUAL"))
        # Order of the condition's parts: state, images, environment state.
        self.vectors = list(spec.of_kind("STATE")), list(spec.of_kind("ENV"))
        self.crop_shape = cast("tuple[int, int] | None", tuple(crop_shape) if crop_shape else None)
        self.vision_backbone, self.pretrained = vision_backbone, pretrained_backbone_weights
        self.crop_is_random, self.crop_per_sample = crop_is_random, crop_per_sample
        self.mask_padding, self.mean_over_padding = do_mask_loss_for_padding, average_over_padding
        self.noise_samples = noise_samples_per_observation
        self.num_inference_steps = num_inference_steps or num_train_timesteps
        self.predicts_noise = prediction_type == "epsilon"

        image = image_shape(spec, self.crop_shape)
        count = len(self.cameras) if use_separate_rgb_encoder_per_camera else min(len(self.cameras), 1)
        self.encoders = nn.ModuleList(
            ImageEncoder(cast("tuple[int, ...]", image), vision_backbone, use_group_norm, spatial_softmax_num_keypoints)
            for _ in range(count)
        )
        image_features = sum(2 * spatial_softmax_num_keypoints for _ in self.cameras)
        vector_features = sum(spec.observation[key].shape[0] for keys in self.vectors for key in keys)
        self.unet = ConditionalUnet1d(
            self.action_dim,
            (image_features + vector_features) * n_obs_steps,
            down_dims,
            kernel_size,
            n_groups,
            final_n_groups,
            diffusion_step_embed_dim,
            use_film_scale_modulation,
        )
        self.noise_scheduler = SCHEDULERS[noise_scheduler_type](
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            clip_sample=clip_sample,
            clip_sample_range=clip_sample_range,
            prediction_type=prediction_type,
        )
        # Kept with the policy, because the scheduler's own stays on the CPU.
        self.register_buffer("alphas_cumprod", self.noise_scheduler.alphas_cumprod.clone(), persistent=False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of the predicted noise or trajectory (equation 5)."""
        cond = self.encode(batch).repeat_interleave(self.noise_samples, dim=0)
        actions = batch["action"].repeat_interleave(self.noise_samples, dim=0)
        noise = rng.randn(actions.shape, actions.device)
        steps = rng.randint(len(self.alphas_cumprod), (len(actions),), actions.device)
        alphas_cumprod = self.alphas_cumprod[steps, None, None]
        noisy = alphas_cumprod.sqrt() * actions + (1 - alphas_cumprod).sqrt() * noise
        predicted = self.unet(noisy, steps, cond)
        errors = F.mse_loss(predicted, noise if self.predicts_noise else actions, reduction="none")
        if not self.mask_padding:
            return errors.mean(), {}
        valid = ~batch["action_is_pad"].repeat_interleave(self.noise_samples, dim=0).unsqueeze(-1)
        if self.mean_over_padding:
            return (errors * valid).mean(), {}
        return (errors * valid).sum() / (rng.all_reduce_mean(valid.sum()) * self.action_dim).clamp(min=1), {}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        """Denoise a trajectory from pure noise; returns its part from now on, (B, horizon - n_obs_steps + 1, A)."""
        cond = self.encode(observation)
        actions = torch.randn((len(cond), self.horizon, self.action_dim), device=cond.device)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        unet = at_autocast_precision(self.unet, actions.device)
        for step in self.noise_scheduler.timesteps:
            steps = torch.full((len(actions),), int(step), device=actions.device)
            predicted = unet(actions, steps, cond)
            actions = self.noise_scheduler.step(predicted.float(), cast(int, step), actions).prev_sample
        return actions[:, self.n_obs_steps - 1 :], {}

    def compile_acting(self) -> None:
        """Compile the U-Net, in which denoising spends its time."""
        self.unet.compile(dynamic=False)

    def encode(self, batch: Batch) -> Tensor:
        """The U-Net's condition (B, cond_dim): the features of all observed frames, concatenated."""
        state, environment = self.vectors
        parts = [batch[key] for key in state]
        if self.cameras:
            parts.append(self.encode_images(torch.stack([batch[key] for key in self.cameras], dim=2)))
        parts += [batch[key] for key in environment]
        return torch.cat(parts, dim=-1).flatten(1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Features (B, T, cameras * 2K) of images (B, T, cameras, C, H, W)."""
        if self.crop_shape:
            random = self.crop_is_random and self.training
            images = crop_images(images, self.crop_shape, random, self.crop_per_sample)
        if len(self.encoders) == 1:
            features = self.encoders[0](images.flatten(0, 2)).unflatten(0, images.shape[:3])
        else:
            each = zip(self.encoders, images.unbind(2), strict=True)
            features = torch.stack([e(i.flatten(0, 1)).unflatten(0, i.shape[:2]) for e, i in each], dim=2)
        return features.flatten(2)

    def load_pretrained(self) -> None:
        """Load the backbone's weights where a file or name of them was given."""
        if self.pretrained:
            for encoder in self.encoders:
                load_resnet_weights(cast(ImageEncoder, encoder).backbone, self.vision_backbone, self.pretrained)


def image_shape(spec: Spec, crop_shape: tuple[int, int] | None) -> tuple[int, ...] | None:
    """(C, H, W) of the encoders' input; None without cameras."""
    for feature in spec.of_kind("VISUAL").values():
        return (feature.shape[0], *(crop_shape or feature.shape[1:]))
    return None


def _check_lengths(horizon: int, n_obs_steps: int, n_action_steps: int, down_dims: Sequence[int]) -> None:
    factor = 2 ** len(down_dims)
    if horizon % factor:
        raise UserError(
            f"policy.horizon={horizon} must be a multiple of {factor}, because the U-Net's {len(down_dims)} levels "
            f"(policy.down_dims) halve it; the nearest is {max(factor, round(horizon / factor) * factor)}.",
            key="policy.horizon",
        )
    if n_obs_steps > horizon:
        raise UserError(
            f"policy.n_obs_steps={n_obs_steps} is more than the policy.horizon={horizon} frames of a trajectory, which "
            "starts at the oldest of them",
            key="policy.n_obs_steps",
            fix="lower it or raise policy.horizon",
        )
    longest = horizon - n_obs_steps + 1
    if n_action_steps > longest:
        raise UserError(
            f"policy.n_action_steps={n_action_steps} is more than the {longest} actions that policy.horizon={horizon} "
            f"leaves after policy.n_obs_steps={n_obs_steps}",
            key="policy.n_action_steps",
            fix="lower it or raise policy.horizon",
        )


def _check_unet(down_dims: Sequence[int], kernel_size: int, n_groups: int, final_n_groups: int) -> None:
    for name, dims, groups in (("n_groups", down_dims, n_groups), ("final_n_groups", down_dims[:1], final_n_groups)):
        if any(dim % groups for dim in dims):
            message = f"policy.down_dims={list(dims)} must be multiples of policy.{name}={groups}."
            raise UserError(message, key="policy.down_dims")
    if kernel_size % 2 == 0:
        message = f"policy.kernel_size={kernel_size} must be odd, so that convolutions keep the length."
        raise UserError(message, key="policy.kernel_size")


def _check_inference_steps(num_inference_steps: int | None, num_train_timesteps: int) -> None:
    if num_inference_steps is not None and num_inference_steps > num_train_timesteps:
        raise UserError(
            f"policy.num_inference_steps={num_inference_steps} must be between 1 and "
            f"policy.num_train_timesteps={num_train_timesteps}, or null.",
            key="policy.num_inference_steps",
        )


def _check_betas(kind: str, schedule: str, start: float, end: float) -> None:
    if schedule == "sigmoid" and kind == "DDIM":
        raise UserError(
            "policy.beta_schedule=sigmoid: DDIM has none",
            key="policy.beta_schedule",
            fix="use another, or policy.noise_scheduler_type=DDPM",
        )
    if schedule != "squaredcos_cap_v2" and not 0 < start <= end < 1:
        raise UserError(
            f"policy.beta_start={start} and policy.beta_end={end} must lie between 0 and 1, the first not above the "
            "second.",
            key="policy.beta_start",
        )


def _check_images(spec: Spec, crop_shape: Sequence[int] | None, use_group_norm: bool, pretrained: str | None) -> None:
    cameras = spec.of_kind("VISUAL")
    if not cameras and not spec.of_kind("ENV"):
        raise UserError(
            f"policy=diffusion needs a camera or observation.environment_state; the dataset has "
            f"{', '.join(spec.observation) or 'no observation'} only.",
            key="policy",
        )
    shapes = {feature.shape for feature in cameras.values()}
    if len(shapes) > 1:
        listed = ", ".join(f"{key} {feature.shape}" for key, feature in cameras.items())
        raise UserError(
            f"policy=diffusion needs cameras of one shape, the dataset has {listed}",
            key="dataset.exclude",
            fix="leave out those of another shape by dataset.exclude=[KEY,...]",
        )
    check_encoder(next(iter(shapes), None), crop_shape, use_group_norm, pretrained)
