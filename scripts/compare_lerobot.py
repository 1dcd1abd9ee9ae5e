#!/usr/bin/env python
"""Compare actions with LeRobot's own, on checkpoints that LeRobot wrote: the same observations, the same draws.

    python scripts/compare_lerobot.py LEROBOT_PYTHON WORK_FOLDER

LEROBOT_PYTHON is the interpreter of an environment with lerobot==0.4.4, WORK_FOLDER is made. For each policy LeRobot
writes a small checkpoint and acts on 12 observations. It is then read here in the newer layout, in that of February
2025 (statistics among the weights, which LeRobot reads by its own migration), and what `export_lerobot.py` makes of
it is read by LeRobot again. Prints the largest difference of each and exits with 1 when one is beyond 1e-4.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

STEPS, ENVS = 12, 2
TOLERANCE = 1e-4
SHAPES = {"observation.image": (3, 96, 96), "observation.state": (4,), "observation.environment_state": (6,)}
IMAGE, STATE, ENVIRONMENT = SHAPES
ACTION_DIM = 4

# Codes are drawn for another number of tokens here than there, so that VQ-BeT's differ unless the draw is sure; the
# two heads of TD-MPC's terminal value are drawn by another generator there where there are more than two.
SMALL: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    "act": (
        "act",
        (IMAGE, STATE),
        {"dim_model": 32, "n_heads": 4, "dim_feedforward": 48, "n_encoder_layers": 2, "n_vae_encoder_layers": 1}
        | {"latent_dim": 6, "chunk_size": 8, "n_action_steps": 4, "pretrained_backbone_weights": None},
    ),
    "act_ensemble": (
        "act",
        (ENVIRONMENT, STATE),
        {"dim_model": 32, "n_heads": 4, "dim_feedforward": 48, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
        | {"latent_dim": 6, "chunk_size": 8, "n_action_steps": 1, "temporal_ensemble_coeff": 0.01}
        | {"pretrained_backbone_weights": None, "pre_norm": True},
    ),
    "diffusion": (
        "diffusion",
        (IMAGE, STATE),
        {"down_dims": [16, 32], "diffusion_step_embed_dim": 16, "horizon": 8, "n_action_steps": 4}
        | {"num_train_timesteps": 10, "spatial_softmax_num_keypoints": 8, "crop_shape": [84, 84]},
    ),
    "diffusion_ddim": (
        "diffusion",
        (IMAGE, STATE),
        {"down_dims": [16, 32], "diffusion_step_embed_dim": 16, "horizon": 8, "n_action_steps": 4}
        | {"num_train_timesteps": 20, "num_inference_steps": 5, "noise_scheduler_type": "DDIM"}
        | {"spatial_softmax_num_keypoints": 8, "use_separate_rgb_encoder_per_camera": True},
    ),
    "vqbet": (
        "vqbet",
        (IMAGE, STATE),
        {"gpt_n_layer": 2, "gpt_n_head": 2, "gpt_hidden_dim": 24, "gpt_input_dim": 24, "gpt_output_dim": 24}
        | {"vqvae_embedding_dim": 16, "vqvae_enc_hidden_dim": 16, "bet_softmax_temperature": 1e-6},
    ),
    "tdmpc": (
        "tdmpc",
        (IMAGE, STATE),
        {"image_encoder_hidden_dim": 8, "state_encoder_hidden_dim": 16, "mlp_dim": 24, "latent_dim": 12}
        | {"n_gaussian_samples": 32, "n_pi_samples": 5, "n_elites": 6, "cem_iterations": 3},
    ),
    "tdmpc_chunk": (
        "tdmpc",
        (ENVIRONMENT, STATE),
        {"state_encoder_hidden_dim": 16, "mlp_dim": 24, "latent_dim": 12, "n_gaussian_samples": 32}
        | {"n_pi_samples": 5, "n_elites": 6, "cem_iterations": 3, "n_action_repeats": 1, "n_action_steps": 3},
    ),
}


def main() -> int:
    """Compare every policy; 1 when one differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("lerobot_python", metavar="LEROBOT_PYTHON")
    parser.add_argument("work", type=Path, metavar="WORK_FOLDER")
    parser.add_argument("--role", default="both", help=argparse.SUPPRESS)  # what this script calls itself with
    parser.add_argument("--folders", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    if arguments.role == "make":
        make(work)
        return 0
    if arguments.role == "act":
        for folder in arguments.folders:
            theirs(work / folder)
        return 0
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)

    def lerobot(role: str, *folders: str) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [arguments.lerobot_python, __file__, "-", str(work), "--role", role, "--folders", *folders]
        subprocess.run(command, env=environment, check=True)

    lerobot("make")
    folders = []
    for name in SMALL:
        older(work / name, work / f"{name}_2025")
        exported(work / name, work / f"{name}_export")
        folders += [name, f"{name}_export"]
        if migrate(arguments.lerobot_python, work / f"{name}_2025"):
            folders.append(f"{name}_2025_migrated")
    lerobot("act", *folders)
    missed = 0
    for name in SMALL:
        want = np.load(work / name / "actions.npy")
        rows = {"0.4": ours(work / name), "2025": ours(work / f"{name}_2025")}
        rows |= {"exported": ours(work / f"{name}_export")}
        rows |= {"exported, theirs": np.load(work / f"{name}_export" / "actions.npy")}
        if f"{name}_2025_migrated" in folders:
            rows |= {"2025, theirs": np.load(work / f"{name}_2025_migrated" / "actions.npy")}
        worst = {row: float(np.abs(got - want).max()) for row, got in rows.items()}
        missed += max(worst.values()) > TOLERANCE
        print(f"{name:16}" + "  ".join(f"{row} {error:.1e}" for row, error in worst.items()), flush=True)
    print(f"{missed} differ" if missed else "all the same")
    return int(missed > 0)


def observations(folder: Path) -> list[dict[str, np.ndarray]]:
    """The observations of each step: uint8 images and float32 vectors, (ENVS, ...)."""
    keys = json.loads((folder / "config.json").read_text())["input_features"]
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(STEPS):
        images = {k: rng.integers(0, 256, (ENVS, *SHAPES[k]), np.uint8) for k in keys if k == IMAGE}
        vectors = {k: rng.standard_normal((ENVS, *SHAPES[k])).astype(np.float32) for k in keys if k != IMAGE}
        steps.append({**images, **vectors})
    return steps


def make(work: Path) -> None:
    """With LeRobot: write the checkpoints."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature  # pyright: ignore[reportMissingImports]
    from lerobot.policies.factory import (  # pyright: ignore[reportMissingImports]
        get_policy_class,
        make_policy_config,
        make_pre_post_processors,
    )

    kinds = {IMAGE: FeatureType.VISUAL, STATE: FeatureType.STATE, ENVIRONMENT: FeatureType.ENV}
    for name, (kind, keys, options) in SMALL.items():
        torch.manual_seed(0)
        features = {key: PolicyFeature(kinds[key], SHAPES[key]) for key in keys}
        action = {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))}
        config = make_policy_config(
            kind, input_features=features, output_features=action, device="cpu", push_to_hub=False, **options
        )
        policy = get_policy_class(kind)(config)
        shapes = {key: (3, 1, 1) if key == IMAGE else SHAPES[key] for key in keys} | {"action": (ACTION_DIM,)}
        stats: dict[str, dict[str, torch.Tensor]] = {}
        for key, shape in shapes.items():
            stats[key] = {"mean": torch.rand(shape), "std": 0.5 + torch.rand(shape)}
            stats[key] |= {"min": -2 - torch.rand(shape), "max": 2 + torch.rand(shape)}
        with torch.no_grad():
            for parameter in policy.parameters():  # fresh heads of zeros would hide differences
                parameter.add_(0.02 * torch.randn_like(parameter))
            if kind == "vqbet":
                policy.vqbet.action_head.vqvae_model.discretized.fill_(True)
        before, after = make_pre_post_processors(config, dataset_stats=stats)
        for part in (policy, before, after):
            part.save_pretrained(work / name)


def theirs(folder: Path) -> None:
    """With LeRobot: act, and leave the actions in the folder."""
    import torch
    from lerobot.configs.policies import PreTrainedConfig  # pyright: ignore[reportMissingImports]
    from lerobot.policies.factory import (  # pyright: ignore[reportMissingImports]
        get_policy_class,
        make_pre_post_processors,
    )

    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cpu"
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    overrides = {"device_processor": {"device": "cpu"}}
    before, after = make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    policy.reset()
    actions = []
    for i, observation in enumerate(observations(folder)):
        tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
        tensors = {key: value.float() / 255 if key == IMAGE else value for key, value in tensors.items()}
        torch.manual_seed(i)
        with torch.inference_mode():
            actions.append(after(policy.select_action(before(tensors))).numpy())
    np.save(folder / "actions.npy", np.stack(actions))


def ours(folder: Path) -> np.ndarray:
    """The actions of the policy read here, (STEPS, ENVS, A)."""
    import torch

    from robolearn.agent import Agent
    from robolearn.config.build import load_policy

    policy, normalizer = load_policy(folder, torch.device("cpu"))
    agent = Agent(policy, normalizer, torch.device("cpu"))
    agent.reset()
    actions = []
    for i, observation in enumerate(observations(folder)):
        torch.manual_seed(i)
        actions.append(agent(observation))
    return np.stack(actions)


def older(folder: Path, out: Path) -> None:
    """The same checkpoint as of February 2025: statistics among the weights, and the config.json of then."""
    import yaml
    from safetensors.torch import load_file, save_file

    from robolearn.checkpoints.lerobot.config_json import PREPROCESSOR
    from robolearn.normalize import REQUIRED_STATS
    from robolearn.system.paths import conf_dir

    out.mkdir()
    config = json.loads((folder / "config.json").read_text())
    known = yaml.safe_load((conf_dir() / "policy" / f"{config['type']}.yaml").read_text())["policy"]
    kept = {"type", "input_features", "output_features", *known}
    config = {k: v for k, v in config.items() if k in kept or k.startswith(("optimizer_", "scheduler_"))}
    (out / "config.json").write_text(json.dumps(config, indent=4))
    state = load_file(folder / "model.safetensors")
    steps = json.loads((folder / PREPROCESSOR).read_text())["steps"]
    statistics = load_file(folder / next(step["state_file"] for step in steps if "state_file" in step))
    for key, feature in {**config["input_features"], **config["output_features"]}.items():
        for stat in REQUIRED_STATS[config["normalization_mapping"].get(feature["type"], "IDENTITY")]:
            owners = ["normalize_inputs"] if key != "action" else ["normalize_targets", "unnormalize_outputs"]
            for owner in owners:
                state[f"{owner}.buffer_{key.replace('.', '_')}.{stat}"] = statistics[f"{key}.{stat}"].clone()
    save_file(state, out / "model.safetensors", {"format": "pt"})


def migrate(python: str, folder: Path) -> bool:
    """Let LeRobot bring a checkpoint of February 2025 to its newer layout, beside it.

    False, and a line that says why, where it cannot, or makes another policy of it: it takes the state of the
    surroundings for one of the robot, and then leaves it out.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    module = "lerobot.processor.migrate_policy_normalization"
    command = [python, "-m", module, "--pretrained-path", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    # It ends with a model card, which the hub checks, and without a network fails there.
    made = folder.with_name(f"{folder.name}_migrated")
    if not (made / "model.safetensors").is_file():
        print(f"{folder.name}: LeRobot's migration ended with {done.stderr.strip().splitlines()[-1]}", flush=True)
        return False
    old, new = (json.loads((place / "config.json").read_text())["input_features"] for place in (folder, made))
    wrong = [key for key, feature in old.items() if new.get(key) != feature]
    for key in wrong:
        print(f"{folder.name}: LeRobot's migration makes {key} {new.get(key)} of {old[key]}", flush=True)
    return not wrong


def exported(folder: Path, out: Path) -> None:
    """Write a checkpoint in LeRobot's layout by our own script."""
    script = Path(__file__).with_name("export_lerobot.py")
    subprocess.run([sys.executable, str(script), str(folder), str(out)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    sys.exit(main())
