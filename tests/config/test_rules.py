"""Every rule of the reference between options, and what it crashed on: one sentence, before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.datasets import write_dataset

from robolearn.config.compose import compose, parse
from robolearn.config.preflight import check
from robolearn.errors import UserError

pytestmark = pytest.mark.slow

CAMERA, OTHER = "observation.image", "observation.images.wrist"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One camera; none; none but keypoints; two; two of different shapes; one that is not square."""
    folder = tmp_path_factory.mktemp("rules")
    made = {
        "camera": write_dataset(folder / "camera", episodes=1),
        "state": write_dataset(folder / "state", episodes=1, image_dtype=None),
        "keypoints": write_dataset(folder / "keypoints", episodes=1, image_dtype=None, keypoints=True),
        "cameras": write_dataset(folder / "cameras", episodes=1, cameras=(CAMERA, OTHER)),
    }
    made["shapes"] = _reshaped(made["cameras"], folder / "shapes", OTHER)
    made["unrewarded"] = shutil.copytree(made["camera"], folder / "unrewarded")
    info = json.loads((made["unrewarded"] / "meta/info.json").read_text())
    del info["features"]["next.reward"]
    (made["unrewarded"] / "meta/info.json").write_text(json.dumps(info))
    made["oblong"] = _reshaped(made["camera"], folder / "oblong", CAMERA)
    return made


def _reshaped(folder: Path, copy: Path, camera: str) -> Path:
    shutil.copytree(folder, copy)
    info: dict[str, Any] = json.loads((copy / "meta/info.json").read_text())
    info["features"][camera]["shape"] = [96, 128, 3]
    (copy / "meta/info.json").write_text(json.dumps(info))
    return copy


@pytest.fixture
def checked(datasets: dict[str, Path]) -> Callable[..., None]:
    """Compose and check as the entry points do; nothing is written."""

    def run(dataset: str, *argv: str) -> None:
        own = [f"dataset.root={datasets[dataset]}", "device=cpu"]
        check(compose(parse([*own, *argv], "train"), "train"))
        assert list(Path.cwd().iterdir()) == []

    return run


ACT, DIFFUSION, TDMPC, VQBET = ([f"policy={name}", "env=none"] for name in ("act", "diffusion", "tdmpc", "vqbet"))

RULES = {
    "eval: more places than episodes": (
        "camera",
        ["env=pusht", "eval.n_episodes=5"],
        "eval.batch_size=50 is more than",
    ),
    "resume without a run": ("camera", ["env=none", "resume=must", "output_dir=a"], "resume=must: a holds no run"),
    "steps": ("camera", ["env=none", "offline.steps=-1"], "offline.steps=-1 (the command line) must be at least 0"),
    "act: backbone": ("camera", [*ACT, "policy.vision_backbone=vgg16"], "policy.vision_backbone=vgg16"),
    "act: ensemble": ("camera", [*ACT, "policy.temporal_ensemble_coeff=0.01"], "set policy.n_action_steps=1 (now 100)"),
    "act: chunk": (
        "camera",
        [*ACT, "policy.chunk_size=50"],
        "policy.n_action_steps=100 is more than the policy.chunk_",
    ),
    "act: history": ("camera", [*ACT, "policy.n_obs_steps=2"], "policy.n_obs_steps=2 must be 1"),
    "act: sight": ("state", ACT, "policy=act needs a camera or observation.environment_state"),
    "act: activation": (
        "camera",
        [*ACT, "policy.feedforward_activation=silu"],
        "'relu' or 'gelu' or 'glu', not 'silu'",
    ),
    "diffusion: backbone": (
        "camera",
        [*DIFFUSION, "policy.vision_backbone=resnet19"],
        "policy.vision_backbone=resnet19",
    ),
    "diffusion: prediction": ("camera", [*DIFFUSION, "policy.prediction_type=v"], "'epsilon' or 'sample', not 'v'"),
    "diffusion: noise": ("camera", [*DIFFUSION, "policy.noise_scheduler_type=DDXM"], "'DDPM' or 'DDIM', not 'DDXM'"),
    "diffusion: horizon": ("camera", [*DIFFUSION, "policy.horizon=18"], "policy.horizon=18 must be a multiple of 8"),
    "diffusion: actions": ("camera", [*DIFFUSION, "policy.n_action_steps=16"], "is more than the 15 actions"),
    "diffusion: sight": ("state", DIFFUSION, "policy=diffusion needs a camera or observation.environment_state"),
    "diffusion: crop": ("camera", [*DIFFUSION, "policy.crop_shape=[97,84]"], "does not fit in the images of 96 x 96"),
    "diffusion: shapes": ("shapes", DIFFUSION, "policy=diffusion needs cameras of one shape"),
    "diffusion: weights": (
        "camera",
        [*DIFFUSION, "policy.pretrained_backbone_weights=w.pth"],
        "set policy.use_group_norm=false or policy.pretrained_backbone_weights=null",
    ),
    "tdmpc: samples": (
        "camera",
        [*TDMPC, "policy.n_gaussian_samples=0"],
        "policy.n_gaussian_samples=0 (the command line) must be at least 1",
    ),
    "tdmpc: scale": (
        "camera",
        [*TDMPC, "policy.normalization_mapping.ACTION=MEAN_STD"],
        "policy.normalization_mapping.ACTION=MEAN_STD must be MIN_MAX",
    ),
    "tdmpc: history": ("camera", [*TDMPC, "policy.n_obs_steps=2"], "policy.n_obs_steps=2 must be 1"),
    "tdmpc: repeats": ("camera", [*TDMPC, "policy.n_action_steps=2"], "set policy.n_action_repeats=1 (now 2)"),
    "tdmpc: plan": (
        "camera",
        [*TDMPC, "policy.n_action_steps=2", "policy.n_action_repeats=1", "policy.use_mpc=false"],
        "policy.n_action_steps=2 needs a plan",
    ),
    "tdmpc: horizon": (
        "camera",
        [*TDMPC, "policy.n_action_steps=6", "policy.n_action_repeats=1"],
        "policy.n_action_steps=6 is more than the policy.horizon=5 actions predicted",
    ),
    "tdmpc: cameras": (
        "cameras",
        TDMPC,
        f"policy=tdmpc takes one camera, the dataset has {CAMERA}, {OTHER}; set dataset.exclude=[{OTHER}], say",
    ),
    "tdmpc: square": ("oblong", TDMPC, "policy=tdmpc takes square images, those of observation.image are 96 x 128"),
    "tdmpc: rewards": ("unrewarded", TDMPC, "has no next.reward; choose another dataset"),
    "vqbet: backbone": ("camera", [*VQBET, "policy.vision_backbone=vgg16"], "policy.vision_backbone=vgg16"),
    "vqbet: two cameras": (
        "cameras",
        VQBET,
        f"the dataset has {CAMERA}, {OTHER}; set dataset.exclude=[{OTHER}], say",
    ),
    "vqbet: no camera": ("keypoints", VQBET, "policy=vqbet needs exactly one camera, the dataset has none"),
    "vqbet: crop": ("camera", [*VQBET, "policy.crop_shape=[84,97]"], "does not fit in the images of 96 x 96"),
    "transform": (
        "camera",
        ["env=none", "image_transforms=default", "image_transforms.tfs.hue.type=Hue"],
        "image_transforms.tfs.hue.type is 'Hue', but Identity, ColorJitter, SharpnessJitter are known",
    ),
    "policy's old type": ("camera", ["+policy.type=act"], "DiffusionPolicy takes no 'type'"),
    "seed": ("camera", ["seed=null"], "seed cannot be null"),
    "project": ("camera", ["env=none", "logger=wandb", "logger.wandb.project=''"], "logger.wandb.project is empty"),
}


@pytest.mark.parametrize("name", RULES)
def test_refused_in_one_sentence(checked: Callable[..., None], name: str, request: pytest.FixtureRequest) -> None:
    dataset, argv, words = RULES[name]
    with pytest.raises(UserError) as refusal:
        checked(dataset, *argv)
    text = str(refusal.value)
    assert words in text
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize(
    ("dataset", "argv"),
    [
        ("keypoints", ["policy=diffusion", "env=none"]),
        ("keypoints", ["policy=act", "env=none"]),
        ("state", ["policy=tdmpc", "env=none"]),
        ("cameras", ["policy=act", "env=none"]),
        ("shapes", ["policy=act", "env=none"]),
        # What the messages above advise.
        ("cameras", [*VQBET, f"dataset.exclude=[{OTHER}]"]),
        ("cameras", [*TDMPC, f"dataset.exclude=[{OTHER}]"]),
        ("shapes", [*DIFFUSION, f"dataset.exclude=[{OTHER}]"]),
        ("oblong", [*TDMPC, f"dataset.exclude=[{CAMERA}]"]),
    ],
    ids=str,
)
def test_what_the_reference_crashed_on_is_fine(checked: Callable[..., None], dataset: str, argv: list[str]) -> None:
    checked(dataset, *argv)
