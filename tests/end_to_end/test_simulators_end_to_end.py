"""From a scripted expert in each of MuJoCo's simulators to a tiny policy that acts there."""

import json
from pathlib import Path

import pytest
from fakes.cli import metrics, run

_TINY = """
policy=act policy.chunk_size=4 policy.n_action_steps=4 policy.dim_model=16 policy.dim_feedforward=16 policy.n_heads=2
policy.n_encoder_layers=1 policy.n_vae_encoder_layers=1 policy.latent_dim=4 policy.pretrained_backbone_weights=null
device=cpu batch_size=2 num_workers=0 offline.steps=1 eval_freq=1 save_freq=100 log_freq=1
eval.n_episodes=2 eval.batch_size=2 eval.n_videos=1
"""
TINY = _TINY.split()
SMALL = ["env.observation_width=64", "env.observation_height=48"]


@pytest.mark.parametrize(
    ("env", "options"),
    [
        pytest.param("xarm_lift", [], marks=pytest.mark.xarm),
        pytest.param("aloha_insertion", SMALL, marks=pytest.mark.aloha),
        pytest.param(
            *("aloha_transfer_cube", ["env.obs_type=environment_state_agent_pos"]),
            marks=[pytest.mark.aloha, pytest.mark.long],
        ),
    ],
)
def test_collects_trains_and_evaluates(env: str, options: list[str], tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    chosen = [f"env={env}", *options]
    collect = [*chosen, "env.episode_length=12", "episodes=2", "keep_failures=true", "workers=1", f"out={data}"]
    run("collect", *collect)
    length = "env.episode_length=2"
    run(
        "train", *TINY, *chosen, length, f"dataset.root={data}", f"output_dir={folder}", f"dataset.cache_dir={tmp_path}"
    )
    figures = json.loads((folder / "eval/00000001/eval.json").read_text())
    assert [episode["length"] for episode in figures["episodes"]] == [2, 2]
    assert "eval/success_rate" in metrics(folder)[-1]
    videos = list((folder / "eval/00000001").rglob("*.mp4"))
    assert videos
    assert all(video.stat().st_size for video in videos)
    settings = json.loads((data / "meta/info.json").read_text())["settings"]
    pictured = "environment_state" not in "".join(options)
    assert settings == ({"render_quality": "fast"} if pictured else {})
