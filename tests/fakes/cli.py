"""The console scripts as processes, and keys of tiny runs on PushT for each policy."""

import json
import os
from pathlib import Path
from typing import Any

from fakes import preloaded
from fakes.pi0 import LANGUAGE, VISION

ROOT = Path(__file__).resolve().parents[2]


def _mapping(sizes: dict[str, int]) -> str:
    return "{" + ",".join(f"{key}:{value}" for key, value in sizes.items()) + "}"


# pi0 needs policy.tokenizer=FOLDER as well.
_POLICIES = {
    "act": """
policy.chunk_size=4 policy.n_action_steps=1 policy.temporal_ensemble_coeff=0.01 policy.dim_model=16 policy.n_heads=2
policy.dim_feedforward=16 policy.n_encoder_layers=1 policy.n_vae_encoder_layers=1 policy.latent_dim=4
""",
    "diffusion": """
policy.down_dims=[8,16] policy.diffusion_step_embed_dim=8 policy.spatial_softmax_num_keypoints=4
policy.num_inference_steps=2 scheduler.num_warmup_steps=0
""",
    "pi0": f"""
policy.chunk_size=4 policy.n_action_steps=4 policy.num_steps=2 policy.proj_width=16 policy.max_state_dim=4
policy.max_action_dim=4 policy.tokenizer_max_length=80 policy.resize_imgs_with_padding=[28,28]
policy.vision={_mapping(VISION)} policy.language={_mapping(LANGUAGE)} policy.expert={{intermediate_size:32}}
""",
    "tdmpc": """
policy.horizon=3 policy.image_encoder_hidden_dim=4 policy.state_encoder_hidden_dim=8 policy.latent_dim=6
policy.mlp_dim=8 policy.q_ensemble_size=3 policy.cem_iterations=2 policy.n_gaussian_samples=6 policy.n_pi_samples=2
policy.n_elites=3
""",
    # One update of its tokenizer; a constant rate, because a schedule's length is that of the run.
    "vqbet": """
policy.n_obs_steps=2 policy.n_action_pred_token=2 policy.action_chunk_size=3 policy.crop_shape=[64,64]
policy.n_vqvae_training_steps=1 policy.vqvae_n_embed=4 policy.vqvae_embedding_dim=6 policy.vqvae_enc_hidden_dim=8
policy.gpt_input_dim=8 policy.gpt_output_dim=8 policy.gpt_hidden_dim=8 policy.gpt_n_layer=1 policy.gpt_n_head=2
policy.spatial_softmax_num_keypoints=4 scheduler.num_warmup_steps=1 scheduler.num_cycles=0
""",
}
_RUN = "device=cpu batch_size=2 num_workers=0 seed=3 log_freq=1 save_freq=100"
_PUSHT = "env=pusht env.episode_length=6 eval.n_episodes=2 eval.batch_size=2 eval.n_videos=0 eval_freq=2"
PUSHT = _PUSHT.split()
POLICIES = {name: [f"policy={name}", *keys.split(), *_RUN.split()] for name, keys in _POLICIES.items()}
TINY = [*POLICIES["diffusion"], *PUSHT]


def run(module: str, *argv: str, status: int = 0, cwd: Path | None = None) -> str:
    """Run ``robolearn.cli.<module>`` to its end; what it printed, both streams together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    done = preloaded.run(f"robolearn.cli.{module}", argv, cwd=cwd or Path.cwd(), env=environment)
    assert done.returncode == status, done.stdout
    return done.stdout


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluation(folder: Path) -> dict[str, Any]:
    """The figures of an eval.json that do not depend on the clock."""
    figures = json.loads((folder / "eval.json").read_text())
    del figures["seconds_per_episode"]
    return figures
