"""Policies as LeRobot publishes them: its config.json and its parameter names, in this project's terms."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor

from robolearn.checkpoints.lerobot.config_json import policy_options
from robolearn.checkpoints.lerobot.parameter_names import rename, rename_back, statistic_names
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy
from robolearn.policies.diffusion import DiffusionPolicy
from robolearn.policies.pi0 import Pi0Policy
from robolearn.policies.tdmpc.tdmpc import TdmpcPolicy
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.types import Feature, Kind, Spec

EMPTY_CAMERA = re.compile(r"observation\.images\.empty_camera_\d+")

# LeRobot's behaviours that this project mends, turned back on.
REFERENCE = {
    "act": {"average_over_padding": True},
    "diffusion": {"crop_per_sample": False, "average_over_padding": True, "final_n_groups": 8},
    "pi0": {
        "convert_statistics": False,
        "do_mask_loss_for_padding": False,
        "loss_over_padded_dims": True,
        "time_sampling": "two_powers",
    },
    "tdmpc": {"q_draws_with_replacement": True, "warm_start_shift": 1},
    "vqbet": {
        "crop_per_sample": False,
        "do_mask_loss_for_padding": False,
        "gradient_per_layer": True,
        "sample_codes_in_training": True,
    },
}

POLICIES: dict[str, type[Policy]] = {
    "act": ActPolicy,
    "diffusion": DiffusionPolicy,
    "pi0": Pi0Policy,
    "tdmpc": TdmpcPolicy,
    "vqbet": VqbetPolicy,
}


def build(config: Mapping[str, Any], fps: float = 1.0) -> tuple[Policy, Normalizer]:
    """A policy and its normaliser, with the reference's behaviour, still without their weights.

    Args:
        config: The content of a LeRobot config.json.
        fps: Frames a second of the robot, which config.json does not say.

    Raises:
        UserError: The type is not supported here.
    """
    kind = config["type"]
    if kind not in POLICIES:
        raise UserError(f"LeRobot policies of type '{kind}' cannot be read; those that can: {', '.join(POLICIES)}.")
    spec = spec_of(config, fps)
    policy = POLICIES[kind](spec, **{**policy_options(config), **REFERENCE[kind]})
    return policy, Normalizer(spec, policy.spec.normalization_mapping, transform=policy.spec.action_transform)


def spec_of(config: Mapping[str, Any], fps: float = 1.0) -> Spec:
    """The features that a LeRobot config.json lists and its policy looks at, without cameras that the robot lacks.

    Raises:
        UserError: One is of a kind that no policy here knows.
    """
    observation = {}
    for key, feature in config["input_features"].items():
        if feature["type"] not in get_args(Kind):
            raise UserError(f"config.json: {key} is of the type {feature['type']}, which no policy here observes.")
        # Of several vectors of the robot LeRobot takes the one of this name.
        other = feature["type"] == "STATE" and key != "observation.state"
        if not other and not EMPTY_CAMERA.fullmatch(key):
            observation[key] = Feature(feature["type"], tuple(feature["shape"]))
    return Spec(observation, Feature("ACTION", tuple(config["output_features"]["action"]["shape"])), fps)


def to_robolearn(kind: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A LeRobot state dict without its constants under our names, which begin with ``policy.`` or ``normalizer.``."""
    places = {name: place for name in state if (place := rename(kind)(name))}
    return {".".join(place): state[name] for name, place in places.items()}


def load_processor_stats(files: Iterable[Path]) -> dict[str, Tensor]:
    """The statistics of LeRobot's processor files under our names; the last file's count."""
    found = {}
    for file in files:
        for name, value in load_file(file).items():
            key, _, statistic = name.rpartition(".")
            found[f"normalizer.stats.{key.replace('.', '_')}.{statistic}"] = value
    return found


def to_lerobot(
    kind: str, policy: Policy, normalizer: Normalizer, tokenized: bool = True, separate_encoders: bool = False
) -> dict[str, Tensor]:
    """A LeRobot state dict of a policy and its normaliser, the statistics and constants included.

    Args:
        kind: LeRobot's type of the policy.
        policy: Of the class in `POLICIES`.
        normalizer: Its normaliser.
        tokenized: A VQ-BeT's tokenizer has been trained.
        separate_encoders: A Diffusion Policy has an encoder for each camera, be it a single one.
    """
    to_theirs = rename_back(kind, separate_encoders)
    state = {}
    for name, value in normalizer.state_dict().items():
        state |= dict.fromkeys(statistic_names(name), value)
    state |= {to_theirs(name): value for name, value in policy.state_dict().items()}
    for name, value in policy.named_buffers():
        if name.endswith(".pool.grid"):
            state[to_theirs(name).replace(".grid", ".pos_grid")] = value
    if isinstance(policy, ActPolicy) and policy.vae is not None:
        state["model.vae_encoder_pos_enc"] = policy.vae.get_buffer("positions").unsqueeze(0)
    if isinstance(policy, VqbetPolicy):
        state |= _vqbet_constants(policy, tokenized)
    if isinstance(policy, Pi0Policy):  # the expert's output layer is nowhere used, and stored all the same
        words, width = policy.paligemma.words.num_embeddings, policy.expert.norm.weight.shape[0]
        state["model.paligemma_with_expert.gemma_expert.lm_head.weight"] = torch.zeros(words, width)
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def _vqbet_constants(policy: VqbetPolicy, tokenized: bool) -> dict[str, Tensor]:
    tokens = policy.n_obs_steps + policy.future_tokens
    starts, offsets = torch.arange(tokens)[:, None], torch.arange(policy.chunk_size)[None]
    block = policy.gpt.positions.num_embeddings
    head = "vqbet.action_head.vqvae_model"
    constants = {
        "vqbet.select_target_actions_indices": starts + offsets,
        f"{head}.discretized": torch.tensor(tokenized),
        f"{head}.vq_layer.freeze_codebook": torch.tensor(tokenized),
    }
    for i in range(len(policy.gpt.blocks)):
        constants[f"vqbet.policy.transformer.h.{i}.attn.bias"] = torch.ones(1, 1, block, block).tril()
    for i in range(len(policy.tokenizer.codebooks)):
        constants[f"{head}.vq_layer.layers.{i}._codebook.initted"] = torch.ones(1)
    return constants
