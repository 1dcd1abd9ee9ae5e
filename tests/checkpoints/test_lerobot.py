"""LeRobot's policies in our terms: every name and shape it publishes has its place here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from robolearn.checkpoints.lerobot import parameter_names, registry, weights
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
    *(("pi0", dataset) for dataset in FEATURES),
    *(("tdmpc", dataset) for dataset in ("pusht", "xarm", "pusht_keypoints")),
    *(("vqbet", dataset) for dataset in ("pusht", "aloha", "xarm")),
]
# LeRobot writes the mapping into every config.json; in ACT's, environment states stay as they are.
ACT = {"type": "act", "normalization_mapping": dict.fromkeys(["VISUAL", "STATE", "ACTION"], "MEAN_STD")}
PI0 = {"type": "pi0", "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}}
OPTIONS: dict[str, dict[str, Any]] = {"act": ACT, "pi0": PI0}
OPTIONS |= {kind: {"type": kind} for kind in ("diffusion", "tdmpc", "vqbet")}
# Dropped by safetensors, because the output layer is the same tensor.
TIED = "model.paligemma_with_expert.paligemma.language_model.model.embed_tokens.weight"
UNPLACED = {
    "act": ["model.vae_encoder_pos_enc"],
    "diffusion": ["diffusion.rgb_encoder.pool.pos_grid"],
    "pi0": ["model.paligemma_with_expert.gemma_expert.lm_head.weight"],
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
        expected = shapes(*weights.build(config(dataset, **OPTIONS[kind])))
    to_ours = weights.rename(kind)
    names = published(shared, f"{kind}_{dataset}")
    found = {place: shape for name, shape in names.items() if (place := to_ours(name))}
    assert found == expected


@pytest.mark.parametrize(("kind", "dataset"), PUBLISHED)
def test_only_constants_have_no_place(shared: Path, kind: str, dataset: str) -> None:
    to_ours = weights.rename(kind)
    names = published(shared, f"{kind}_{dataset}")
    assert [name for name in names if to_ours(name) is None] == UNPLACED[kind]


@pytest.mark.parametrize(("kind", "dataset"), PUBLISHED)
def test_an_export_has_all_names_shapes_and_types(shared: Path, kind: str, dataset: str) -> None:
    with torch.device("meta"):
        options = config(dataset, **OPTIONS[kind])
        state = weights.to_lerobot(kind, *weights.build(options), options)
    lines = (shared / "golden/state_dict_keys" / f"{kind}_{dataset}.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    expected = {name: (f"torch.{dtype}", json.loads(shape)) for name, dtype, shape, *_ in rows}
    expected.pop(TIED, None)
    assert {name: (str(value.dtype), list(value.shape)) for name, value in state.items()} == expected


@pytest.mark.parametrize("separate", [False, True])
def test_names_go_back(shared: Path, separate: bool) -> None:
    for fixture in sorted((shared / "golden/public").glob("*/state_dict.json")):
        kind = fixture.parent.name.partition("_")[0]
        if kind not in registry.kinds() or ("separate" in fixture.parent.name) != separate:
            continue
        options = {"use_separate_rgb_encoder_per_camera": separate}
        to_ours, to_theirs = parameter_names.rename(kind), parameter_names.rename_back(kind, options)
        for name in (row["name"] for row in json.loads(fixture.read_text())):
            place = to_ours(name)
            if name != TIED and place and place[0] == "policy":
                assert to_theirs(place[1]) == name
            elif place and place[0] == "normalizer":
                assert name in parameter_names.statistic_names(place[1])


def test_the_references_behaviours_are_turned_on() -> None:
    with torch.device("meta"):
        policy, _ = weights.build(config("pusht"))
    assert not policy.crop_per_sample
    assert policy.mean_over_padding
    with torch.device("meta"):
        policy, _ = weights.build(config("pusht", **OPTIONS["act"]))
    assert policy.mean_over_padding
    with torch.device("meta"):
        policy, _ = weights.build(config("pusht", **OPTIONS["tdmpc"]))
    assert policy.q_draws_with_replacement
    assert policy.warm_start_shift == 1
    with torch.device("meta"):
        policy, _ = weights.build(config("pusht", **OPTIONS["vqbet"]))
    assert policy.sample_in_training
    assert not policy.mask_padding


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match=r"type 'smolvla' cannot be read; those that can: .*diffusion"):
        weights.build(config("pusht", type="smolvla"))
