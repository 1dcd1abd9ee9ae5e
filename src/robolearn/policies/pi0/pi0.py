"""Flow matching of action chunks (Black et al. 2024, arXiv:2410.24164, section IV)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from annotated_types import Interval, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from robolearn import rng
from robolearn.errors import UserError
from robolearn.normalize import NormalizationMode
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.length_checks import check_n_action_steps, check_n_obs_steps
from robolearn.policies.pi0 import option_checks
from robolearn.policies.pi0.aloha_units import AlohaUnits
from robolearn.policies.pi0.attention import ATTENTION
from robolearn.policies.pi0.attention import Name as AttentionName
from robolearn.policies.pi0.gemma import Gemma, KVCache
from robolearn.policies.pi0.paligemma import PaliGemma, resize_with_pad
from robolearn.policies.pi0.paligemma_weights import load_paligemma
from robolearn.policies.pi0.tokenizer import Tokenizer
from robolearn.types import Batch, Depth, Kind, Pixels, Positive, Size, Spec, Window

PUBLISHED = {
    "vision": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
    },
    "language": {
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 18,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "vocab_size": 257152,
    },
    "expert": {"intermediate_size": 4096},
}
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
DEFAULT_NORMALIZATION: dict[Kind, NormalizationMode] = {
    "VISUAL": "IDENTITY",
    "STATE": "MEAN_STD",
    "ENV": "MEAN_STD",
    "ACTION": "MEAN_STD",
}


class Pi0Policy(Policy):
    """A vision-language-action model: turns noise into a chunk of actions along a learned flow.

    PaliGemma encodes images and the instruction once; a second, smaller stack of layers, the action expert, attends to
    its keys and values and to the robot's state. Times go from 1, noise, to 0, actions.

    Args:
        spec: Features of the dataset.
        n_obs_steps: Observed frames; must be 1.
        chunk_size: Actions predicted at once, T.
        n_action_steps: Actions executed of each chunk, at most chunk_size.
        normalization_mapping: Normalisation of each kind of feature; images must be IDENTITY.
        max_state_dim: Size that the state is padded to with zeros.
        max_action_dim: Size that an action is padded to with zeros.
        resize_imgs_with_padding: (width, height) that images are resized into; null: they have the size already.
        empty_cameras: Cameras of a pretrained policy that this robot lacks. Nothing attends to them, so they are left
            out of the computation, which changes no result.
        adapt_to_pi_aloha: Learn in the units of the Aloha robots of pi0's own training.
        use_delta_joint_actions_aloha: Learn joint actions as differences from the state; grippers stay absolute.
        convert_statistics: Take the statistics of the converted actions and states; false: those of the dataset's own
            units, as the reference does.
        tokenizer: Folder or hub id of PaliGemma's tokenizer.
        tokenizer_max_length: Most tokens of an instruction.
        pretrained_paligemma: Folder or hub id of PaliGemma's weights to start from, or null.
        download: Whether hub ids may be downloaded.
        proj_width: Width of the action expert, even.
        num_steps: Euler steps from noise to actions.
        use_cache: Encode the observation once for all steps; false: at every step, with the same result.
        attention_implementation: eager, sdpa or flex.
        freeze_vision_encoder: Do not train SigLIP.
        train_expert_only: Do not train PaliGemma.
        train_state_proj: Train the projection of the state.
        gradient_checkpointing: Recompute layers in the backward pass instead of keeping their activations.
        dtype: Precision of the weights of PaliGemma and the expert; the projections around them stay float32.
        do_mask_loss_for_padding: Actions beyond the episode's end do not count; false: they do, as in the reference.
        loss_over_padded_dims: The zeros that actions are padded with count, as in the reference; else they carry
            no noise and are not learned.
        time_sampling: "beta" samples times as in the paper; "two_powers" as the reference does, which is no Beta.
        vision: Values of transformers' SiglipVisionConfig in place of PaliGemma's.
        language: Values of transformers' GemmaConfig in place of PaliGemma's.
        expert: Values of transformers' GemmaConfig in place of the published expert's.

    Raises:
        UserError: Options contradict each other or the spec; its key is the option's.
    """

    def __init__(
        self,
        spec: Spec,
        n_obs_steps: int = 1,
        chunk_size: Size = 50,
        n_action_steps: Size = 50,
        normalization_mapping: Mapping[Kind, NormalizationMode] | None = None,
        max_state_dim: Size = 32,
        max_action_dim: Size = 32,
        resize_imgs_with_padding: Sequence[Pixels] | None = (224, 224),
        empty_cameras: Annotated[int, Interval(ge=0, le=100)] = 0,
        adapt_to_pi_aloha: bool = False,
        use_delta_joint_actions_aloha: bool = False,
        convert_statistics: bool = True,
        tokenizer: str = "google/paligemma-3b-pt-224",
        tokenizer_max_length: Size = 48,
        pretrained_paligemma: str | None = None,
        download: bool = False,
        proj_width: Annotated[int, Interval(ge=2, le=65_536), MultipleOf(2)] = 1024,
        num_steps: Depth = 10,
        use_cache: bool = True,
        attention_implementation: AttentionName = "sdpa",
        freeze_vision_encoder: bool = True,
        train_expert_only: bool = False,
        train_state_proj: bool = True,
        gradient_checkpointing: bool = False,
        dtype: Literal["bfloat16", "float32"] = "bfloat16",
        do_mask_loss_for_padding: bool = True,
        loss_over_padded_dims: bool = False,
        time_sampling: Literal["beta", "two_powers"] = "beta",
        vision: Mapping[str, Positive] | None = None,
        language: Mapping[str, Positive] | None = None,
        expert: Mapping[str, Positive] | None = None,
    ) -> None:
        super().__init__()
        mapping = normalization_mapping or DEFAULT_NORMALIZATION
        check_n_obs_steps("pi0", n_obs_steps)
        check_n_action_steps(n_action_steps, chunk_size)
        option_checks.check_frozen(freeze_vision_encoder, train_expert_only)
        vision_sizes, language_sizes, expert_sizes = option_checks.network_sizes(
            vision, language, expert, proj_width, PUBLISHED
        )
        option_checks.check_features(spec, max_state_dim, max_action_dim, mapping)
        option_checks.check_images(spec, resize_imgs_with_padding, vision_sizes["image_size"])
        units = None
        if adapt_to_pi_aloha or use_delta_joint_actions_aloha:
            units = AlohaUnits(spec, adapt_to_pi_aloha, use_delta_joint_actions_aloha, convert_statistics)

        self.spec = PolicySpec(
            window=Window(observation=(0,), action=tuple(range(chunk_size))),
            n_action_steps=n_action_steps,
            normalization_mapping=mapping,
            action_transform=units,
            uses_language=True,
        )
        self.cameras = list(spec.of_kind("VISUAL"))
        self.vectors = [*spec.of_kind("STATE"), *spec.of_kind("ENV")]
        self.chunk_size, self.action_dim = chunk_size, spec.action.shape[0]
        self.max_action_dim, self.max_state_dim = max_action_dim, max_state_dim
        self.image_size = tuple(resize_imgs_with_padding) if resize_imgs_with_padding else None
        self.empty_cameras = empty_cameras
        self.tokenizer: Callable[[Sequence[str]], tuple[Tensor, Tensor]]
        self.tokenizer = Tokenizer(tokenizer, tokenizer_max_length, download)
        self.tokenizer_name = tokenizer
        self.pretrained_paligemma, self.download = pretrained_paligemma, download
        self.num_steps, self.use_cache, self.time_sampling = num_steps, use_cache, time_sampling
        self.mask_padding, self.learn_padded_dims = do_mask_loss_for_padding, loss_over_padded_dims

        attention, self.precision = ATTENTION[attention_implementation], DTYPES[dtype]
        with _default_dtype(self.precision):
            self.paligemma = PaliGemma(vision_sizes, language_sizes, attention, gradient_checkpointing)
            self.expert = Gemma(expert_sizes, attention, gradient_checkpointing)
        self.expert.norm.float()
        self.state_proj = nn.Linear(max_state_dim, proj_width)
        self.action_in = nn.Linear(max_action_dim, proj_width)
        self.action_time_mlp = nn.Sequential(
            nn.Linear(2 * proj_width, proj_width), nn.SiLU(), nn.Linear(proj_width, proj_width)
        )
        self.action_out = nn.Linear(proj_width, max_action_dim)
        self.register_buffer("suffix_mask", _suffix_mask(chunk_size), persistent=False)
        self.state_proj.requires_grad_(train_state_proj)
        self.paligemma.requires_grad_(not train_expert_only)
        if freeze_vision_encoder:
            self.paligemma.vision.requires_grad_(False)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared error of the flow from actions to noise, at one time of each chunk (equation 1)."""
        actions = F.pad(batch["action"], (0, self.max_action_dim - self.action_dim))
        noise, times = self.sample_noise(actions), self.sample_times(actions)
        t = times[:, None, None]
        noisy = t * noise + (1 - t) * actions
        velocity = self.flow(noisy, times, self.proprio(batch), self.encode_prefix(batch))
        errors = F.mse_loss(velocity, noise - actions, reduction="none")
        if not self.learn_padded_dims:
            errors = errors[..., : self.action_dim]
        if not self.mask_padding:
            return errors.mean(), {}
        valid = ~batch["action_is_pad"].unsqueeze(-1)
        return (errors * valid).sum() / (rng.all_reduce_mean(valid.sum()) * errors.shape[-1]).clamp(min=1), {}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        """Integrate the flow from noise to a chunk (B, chunk_size, A) in Euler steps (section IV)."""
        proprio, cache = self.proprio(observation), self.encode_prefix(observation)
        actions = self.sample_noise(proprio.new_empty(len(proprio), self.chunk_size, self.max_action_dim))
        for step in range(self.num_steps):
            times = proprio.new_full((len(proprio),), 1 - step / self.num_steps)
            if step and not self.use_cache:
                cache = self.encode_prefix(observation)
            actions = actions - self.flow(actions, times, proprio, cache) / self.num_steps
        return actions[..., : self.action_dim], {}

    def encode_prefix(self, batch: Batch) -> KVCache:
        """PaliGemma's keys and values of the newest images and the instruction."""
        images = [batch[key][:, -1] for key in self.cameras]
        if self.image_size:
            images = [resize_with_pad(image, *self.image_size) for image in images]
        return self.paligemma([2 * image - 1 for image in images], batch["task_tokens"], batch["task_mask"])

    def flow(self, noisy: Tensor, times: Tensor, proprio: Tensor, prefix: KVCache) -> Tensor:
        """The velocity (B, T, max_action_dim) towards noise.

        The state's token attends to the prefix alone, those of actions also to it and to each other.

        Args:
            noisy: Noisy actions (B, T, max_action_dim).
            times: (B,) in [0, 1].
            proprio: The padded state (B, max_state_dim).
            prefix: Keys and values of images and instruction.
        """
        # In the precision that published weights were trained with.
        time = embed_times(times, self.action_in.out_features).to(self.precision)
        time = time.unsqueeze(1).expand(-1, noisy.shape[1], -1)
        actions = self.action_time_mlp(torch.cat([self.action_in(noisy), time], dim=-1))
        tokens = torch.cat([self.state_proj(proprio).unsqueeze(1), actions], dim=1)
        encoded = self.expert(tokens, prefix, self.get_buffer("suffix_mask"))
        velocity = self.action_out(encoded[:, 1:].float())
        if not self.learn_padded_dims:
            velocity = F.pad(velocity[..., : self.action_dim], (0, self.max_action_dim - self.action_dim))
        return velocity

    def proprio(self, batch: Batch) -> Tensor:
        """The newest frame of all vectors, padded with zeros (B, max_state_dim)."""
        if not self.vectors:
            return torch.zeros(len(batch["task_mask"]), self.max_state_dim, device=batch["task_mask"].device)
        state = torch.cat([batch[key][:, -1] for key in self.vectors], dim=-1)
        return F.pad(state, (0, self.max_state_dim - state.shape[-1]))

    def sample_noise(self, like: Tensor) -> Tensor:
        """Standard normal noise of a tensor's shape, 0 in the padded dimensions unless these are learned."""
        noise = rng.randn(like.shape, like.device, torch.float32)
        if not self.learn_padded_dims:
            noise[..., self.action_dim :] = 0
        return noise

    def sample_times(self, actions: Tensor) -> Tensor:
        """Times (B,) in [0.001, 1], more often near noise: 0.999 of a Beta(1.5, 1) variable (appendix B)."""
        times = rng.rand((len(actions),), actions.device) ** (1 / 1.5)
        if self.time_sampling == "two_powers":
            times = times / (times + rng.rand(times.shape, times.device))
        return times * 0.999 + 0.001

    def encode_tasks(self, tasks: Sequence[str]) -> Batch:
        """Tokens of instructions, ``task_tokens`` (N, L), and ``task_mask`` (N, L), which is false for padding."""
        tokens, valid = self.tokenizer(tasks)
        size = self.paligemma.words.num_embeddings
        if tokens.max() >= size:
            raise UserError(
                f"policy.tokenizer={self.tokenizer_name} has tokens beyond policy.language.vocab_size={size}.",
                key="policy.tokenizer",
            )
        return {"task_tokens": tokens, "task_mask": valid}

    def load_pretrained(self) -> None:
        """Load PaliGemma's weights where a folder or hub id of them was given."""
        if self.pretrained_paligemma:
            load_paligemma(self.paligemma, self.pretrained_paligemma, self.download)


def embed_times(times: Tensor, width: int) -> Tensor:
    """Sines, then cosines, (B, width) of times (B,) in [0, 1], with periods from 0.004 to 4.

    In double precision: angles reach 1,600 radians, of which float32 keeps three digits after the point.
    """
    precise = torch.float32 if times.device.type == "mps" else torch.float64  # Apple's GPUs have no other
    exponents = torch.linspace(0, 1, width // 2, dtype=precise, device=times.device)
    angles = times.to(precise).unsqueeze(-1) * (2 * math.pi / (4e-3 * (4.0 / 4e-3) ** exponents))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _suffix_mask(chunk_size: int) -> Tensor:
    """Which of the expert's tokens, the state's and the actions', attend to which (1 + T, 1 + T)."""
    mask = torch.ones(1 + chunk_size, 1 + chunk_size, dtype=torch.bool)
    mask[0, 1:] = False
    return mask


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
