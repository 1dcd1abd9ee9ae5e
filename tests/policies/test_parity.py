"""The policies compute what the reference computed, and the check that says so can fail."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.parity import ACT, DIFFUSION, PI0, TDMPC, VQBET, parity

from robolearn.checkpoints.lerobot.registry import get_interop

FIXTURES = "golden/public"
ENVSTATE, IMAGE = "diffusion_envstate_ddim", "diffusion_image_batchnorm_randcrop"


@pytest.mark.parametrize("name", ACT + DIFFUSION + PI0 + TDMPC + VQBET)
def test_equals_the_reference(shared: Path, name: str) -> None:
    worst = parity.check(parity.Fixture(shared / FIXTURES / name))
    assert worst.missed == {}
    assert {"loss", "gradient", "total", "updates", "delta"} <= worst.shares.keys()
    # Nothing acts while VQ-BeT's tokenizer learns.
    assert "action" in worst.shares or name in ("vqbet_phase1", "vqbet_transition")


@pytest.mark.parametrize(
    ("kind", "names"), [("act", ACT), ("diffusion", DIFFUSION), ("pi0", PI0), ("tdmpc", TDMPC), ("vqbet", VQBET)]
)
def test_no_fixture_is_left_out(shared: Path, kind: str, names: list[str]) -> None:
    assert sorted(path.name for path in (shared / FIXTURES).glob(f"{kind}_*")) == names


@pytest.fixture
def changed(shared: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a fixture whose config.json has other values, so that the policy computes something else."""

    def copy(name: str, **options: Any) -> Path:
        # Weights depend on the names of both folders.
        folder = tmp_path / "public" / name
        folder.mkdir(parents=True)
        for file in (shared / FIXTURES / name).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((folder / "config.json").read_text())
        assert options.keys() <= config.keys()
        (folder / "config.json").write_text(json.dumps(config | options))
        return folder

    return copy


def status(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["check_parity.py", *map(str, folders)])
    return parity.main()


def test_status_is_0_where_all_pass(
    shared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert status(monkeypatch, shared / FIXTURES / ENVSTATE) == 0
    assert "all pass" in capsys.readouterr().out


MUTATIONS = [
    {"n_groups": 2},
    {"use_film_scale_modulation": False},
    {"n_action_steps": 2},
    {"horizon": 16},
    {"prediction_type": "sample"},
    {"beta_schedule": "linear"},
    {"clip_sample_range": 0.5},
    {"noise_scheduler_type": "DDPM"},
    {"num_inference_steps": 5},
    {"normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MIN_MAX"}},
    {"normalization_mapping": {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MEAN_STD"}},
]


@pytest.mark.parametrize("options", MUTATIONS, ids=[next(iter(options)) for options in MUTATIONS])
def test_another_policy_is_caught(
    changed: Callable[..., Path],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert status(monkeypatch, changed(ENVSTATE, **options)) == 1
    assert f"MISS {ENVSTATE}" in capsys.readouterr().out


ACT_MUTATIONS = [
    ("act_envstate_vae", {"n_heads": 2}),
    ("act_envstate_vae", {"n_action_steps": 2}),
    ("act_envstate_vae", {"kl_weight": 9.99}),
    ("act_envstate_prenorm_gelu", {"feedforward_activation": "relu"}),
    ("act_envstate_tempens", {"temporal_ensemble_coeff": 0.05}),
    ("act_envstate_tempens", {"temporal_ensemble_coeff": None}),
]


@pytest.mark.parametrize(("name", "options"), ACT_MUTATIONS, ids=str)
def test_another_act_is_caught(
    changed: Callable[..., Path], name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(monkeypatch, changed(name, **options)) == 1


TDMPC_MUTATIONS = [
    ("tdmpc_envstate_mpc", {"discount": 0.91}),
    ("tdmpc_envstate_mpc", {"n_action_repeats": 3}),
    ("tdmpc_envstate_mpc", {"elite_weighting_temperature": 0.6}),
    ("tdmpc_envstate_mpc", {"target_model_momentum": 0.9}),
    ("tdmpc_envstate_mpc_chunk", {"n_action_steps": 2}),
    ("tdmpc_envstate_nompc", {"expectile_weight": 0.8}),
    ("tdmpc_envstate_nompc", {"use_mpc": True}),
    ("tdmpc_image_mpc", {"max_random_shift_ratio": 0.0}),
]


@pytest.mark.parametrize(("name", "options"), TDMPC_MUTATIONS, ids=str)
def test_another_tdmpc_is_caught(
    changed: Callable[..., Path], name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(monkeypatch, changed(name, **options)) == 1


PI0_MUTATIONS = [
    ("pi0_tiny_f32", {"num_steps": 4}),
    ("pi0_tiny_f32", {"n_action_steps": 2}),
    ("pi0_tiny_f32", {"freeze_vision_encoder": True}),
    ("pi0_tiny_expertonly_f32", {"train_expert_only": False}),
    ("pi0_tiny_frozenvision_f32", {"train_state_proj": True}),
    ("pi0_tiny_aloha_emptycam_f32", {"adapt_to_pi_aloha": False}),
    ("pi0_tiny_aloha_emptycam_f32", {"use_delta_joint_actions_aloha": True}),
]


@pytest.mark.parametrize(("name", "options"), PI0_MUTATIONS, ids=str)
def test_another_pi0_is_caught(
    changed: Callable[..., Path], name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(monkeypatch, changed(name, **options)) == 1


@pytest.mark.parametrize("key", ["loss_over_padded_dims", "time_sampling"])
def test_a_mended_pi0_is_another(shared: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mended = {"loss_over_padded_dims": False, "time_sampling": "beta"}
    monkeypatch.setitem(get_interop("pi0").reference, key, mended[key])
    assert status(monkeypatch, shared / FIXTURES / "pi0_tiny_f32") == 1


VQBET_MUTATIONS = [
    ("vqbet_phase1", {"optimizer_vqvae_lr": 0.0009}),
    ("vqbet_phase2", {"primary_code_loss_weight": 6.0}),
    ("vqbet_phase2", {"offset_loss_weight": 9990.0}),
    ("vqbet_phase2_sequential", {"secondary_code_loss_weight": 1.0}),
    ("vqbet_transition", {"n_vqvae_training_steps": 3}),
]


@pytest.mark.parametrize(("name", "options"), VQBET_MUTATIONS, ids=str)
def test_another_vqbet_is_caught(
    changed: Callable[..., Path], name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert status(monkeypatch, changed(name, **options)) == 1


@pytest.mark.parametrize("key", ["gradient_per_layer", "sample_codes_in_training"])
def test_a_mended_vqbet_is_another(shared: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(get_interop("vqbet").reference, key, False)
    name = {"gradient_per_layer": "vqbet_phase1", "sample_codes_in_training": "vqbet_phase2"}[key]
    folder = shared / FIXTURES / name
    assert status(monkeypatch, folder) == 1


def test_a_search_that_starts_elsewhere_is_caught(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(get_interop("tdmpc").reference, "warm_start_shift", 3)
    assert "action" in parity.check(parity.Fixture(shared / FIXTURES / "tdmpc_envstate_mpc_chunk")).missed


def test_another_crop_is_caught(changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert status(monkeypatch, changed(IMAGE, crop_is_random=False)) == 1


def test_one_miss_among_many_is_told(
    shared: Path, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folders = shared / FIXTURES / "diffusion_envstate_ddpm", changed(ENVSTATE, n_groups=2)
    assert status(monkeypatch, *folders) == 1
    out = capsys.readouterr().out
    assert "ok   diffusion_envstate_ddpm" in out
    assert "1 missed" in out


def test_a_wrong_schedule_of_updates_is_caught(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = parity.build_schedule

    def late(optimizer: Any, setup: dict[str, Any]) -> Any:
        return right(optimizer, setup | {"num_training_steps": 10})

    monkeypatch.setattr(parity, "build_schedule", late)
    assert "updates" in parity.check(parity.Fixture(shared / FIXTURES / ENVSTATE)).missed


def test_a_nan_is_a_miss() -> None:
    worst = parity.Worst()
    worst.add("loss", 1.0, 1.0, 1e-4, 1e-5)
    worst.add("loss", float("nan"), 1.0, 1e-4, 1e-5)
    worst.add("loss", 1.0, 1.0, 1e-4, 1e-5)
    assert "loss" in worst.missed
