"""LeRobot's policies in our terms: every name and shape it publishes has its place here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robolearn import lerobot
from robolearn.errors import UserError

# The features of the datasets that the lists of names were made with.
FEATURES: dict[str, dict[str, tuple[str, list[int]]]] = {
    "pusht": {
        "observation.image": ("VISUAL", [3, 96, 96]),
        "observation.state": ("STATE", [2]),
        "action": ("ACTION", [2]),
    },
    "aloha": {
        "observation.images.top": ("VISUAL", [3, 480, 640]),
        "observation.state": ("STATE", [14]),
        "action": ("ACTION", [14]),
    },
    "xarm": {
        "observation.image": ("VISUAL", [3, 84, 84]),
        "observation.state": ("STATE", [4]),
        "action": ("ACTION", [4]),
    },
    "pusht_keypoints": {
        "observation.environment_state": ("ENV", [16]),
        "observation.state": ("STATE", [2]),
        "action": ("ACTION", [2]),
    },
}
# What LeRobot could build, and the names that hold constants.
PUBLISHED = [
    *(("act", dataset) for dataset in FEATURES),
    *(("diffusion", dataset) for dataset in ("pusht", "aloha", "xarm")),
    *(("tdmpc", dataset) for dataset in ("pusht", "xarm", "pusht_keypoints")),
    *(("vqbet", dataset) for dataset in ("pusht", "aloha", "xarm")),
]
# LeRobot writes the mapping into every config.json; in ACT's, environment states stay as they are.
ACT = {"type": "act", "normalization_mapping": dict.fromkeys(["VISUAL", "STATE", "ACTION"], "MEAN_STD")}
OPTIONS: dict[str, dict[str, Any]] = {"act": ACT} | {kind: {"type": kind} for kind in ("diffusion", "tdmpc", "vqbet")}
UNPLACED = {
    "act": ["model.vae_encoder_pos_enc"],
    "diffusion": ["diffusion.rgb_encoder.pool.pos_grid"],
    "tdmpc": [],
    "vqbet": [
        "vqbet.select_target_actions_indices",
        "vqbet.rgb_encoder.pool.pos_grid",
        *(f"vqbet.policy.transformer.h.{i}.attn.bias" for i in range(8)),
        "vqbet.action_head.vqvae_model.discretized",
        "vqbet.action_head.vqvae_model.vq_layer.freeze_codebook",
        *(f"vqbet.action_head.vqvae_model.vq_layer.layers.{i}._codebook.initted" for i in range(2)),
    ],
}


def config(dataset: str, **options: Any) -> dict[str, Any]:
    features = {key: {"type": kind, "shape": shape} for key, (kind, shape) in FEATURES[dataset].items()}
    return {
        "type": "diffusion",
        "output_features": {"action": features.pop("action")},
        "input_features": features,
        "optimizer_lr": 1e-4,
        "scheduler_warmup_steps": 500,
    } | options


def published(shared: Path, name: str) -> dict[str, list[int]]:
    """Names and shapes of a state dict as LeRobot saves it."""
    lines = (shared / "golden/state_dict_keys" / f"{name}.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    return {row[0]: json.loads(row[2]) for row in rows}


def shapes(policy: torch.nn.Module, normalizer: torch.nn.Module) -> dict[tuple[str, str], list[int]]:
    owners = {"policy": policy, "normalizer": normalizer}
    return {(place, name): list(v.shape) for place, owner in owners.items() for name, v in owner.state_dict().items()}


@pytest.mark.parametrize(("kind", "dataset"), PUBLISHED)
def test_names_and_shapes_cover_the_policy(shared: Path, kind: str, dataset: str) -> None:
    with torch.device("meta"):
        expected = shapes(*lerobot.build(config(dataset, **OPTIONS[kind])))
    to_ours = lerobot.rename(kind)
    names = published(shared, f"{kind}_{dataset}")
    found = {place: shape for name, shape in names.items() if (place := to_ours(name))}
    assert found == expected


@pytest.mark.parametrize(("kind", "dataset"), PUBLISHED)
def test_only_constants_have_no_place(shared: Path, kind: str, dataset: str) -> None:
    to_ours = lerobot.rename(kind)
    names = published(shared, f"{kind}_{dataset}")
    assert [name for name in names if to_ours(name) is None] == UNPLACED[kind]


def test_weights_are_taken_up(shared: Path) -> None:
    policy, normalizer = lerobot.build(small())
    state = state_of(shared, policy, normalizer)
    lerobot.load(policy, normalizer, "diffusion", state)
    assert torch.equal(policy.unet.final[1].bias, state["diffusion.unet.final_conv.1.bias"])
    assert torch.equal(normalizer.stats["action"].max, state["unnormalize_outputs.buffer_action.max"])


def small() -> dict[str, Any]:
    return config("pusht", down_dims=[8, 16, 24], diffusion_step_embed_dim=8)


def state_of(shared: Path, policy: torch.nn.Module, normalizer: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random tensors under LeRobot's names in the shapes of a policy here."""
    torch.manual_seed(0)
    ours, to_ours = shapes(policy, normalizer), lerobot.rename("diffusion")
    places = {name: to_ours(name) for name in published(shared, "diffusion_pusht")}
    state = {name: torch.rand(ours[place]) for name, place in places.items() if place}
    twin = "normalize_targets.buffer_action.max"  # saved twice under two names
    return state | {twin: state[twin.replace("normalize_targets", "unnormalize_outputs")]}


def test_a_missing_weight_is_named(shared: Path) -> None:
    policy, normalizer = lerobot.build(small())
    state = state_of(shared, policy, normalizer)
    del state["diffusion.unet.final_conv.1.bias"]
    with pytest.raises(UserError, match=r"do not fit config.json: .*unet.final.1.bias"):
        lerobot.load(policy, normalizer, "diffusion", state)


def test_weights_of_other_sizes_are_refused(shared: Path) -> None:
    policy, normalizer = lerobot.build(small())
    state = state_of(shared, policy, normalizer)
    state["diffusion.unet.final_conv.1.bias"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"do not fit config.json: .*size mismatch"):
        lerobot.load(policy, normalizer, "diffusion", state)


def test_the_references_behaviours_are_turned_on() -> None:
    with torch.device("meta"):
        policy, _ = lerobot.build(config("pusht"))
    assert not policy.crop_per_sample
    assert policy.averages_over_padding
    with torch.device("meta"):
        policy, _ = lerobot.build(config("pusht", **OPTIONS["act"]))
    assert policy.averages_over_padding
    with torch.device("meta"):
        policy, _ = lerobot.build(config("pusht", **OPTIONS["tdmpc"]))
    assert policy.q_draws_with_replacement
    assert policy.warm_start_shift == 1
    with torch.device("meta"):
        policy, _ = lerobot.build(config("pusht", **OPTIONS["vqbet"]))
    assert policy.samples_in_training
    assert not policy.masks_padding


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"type 'smolvla' cannot be read; those that can: .*diffusion"):
        lerobot.build(config("pusht", type="smolvla"))
