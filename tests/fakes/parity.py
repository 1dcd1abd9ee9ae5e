"""scripts/check_parity.py as a module, and the names of the recorded fixtures by policy."""

import importlib.util
from pathlib import Path
from types import ModuleType

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/check_parity.py"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_parity", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


parity = _script()

DIFFUSION = [
    "diffusion_envstate_ddim",
    "diffusion_envstate_ddpm",
    "diffusion_image2_separate",
    "diffusion_image2_shared",
    "diffusion_image_batchnorm_randcrop",
    "diffusion_image_ddim",
    "diffusion_image_ddpm",
    "diffusion_image_envstate_nocrop",
    "diffusion_image_sample_masked",
]

ACT = [
    "act_envstate_novae",
    "act_envstate_prenorm_gelu",
    "act_envstate_tempens",
    "act_envstate_vae",
    "act_image2_vae",
    "act_image_vae",
]


TDMPC = [
    "tdmpc_envstate_mpc",
    "tdmpc_envstate_mpc_chunk",
    "tdmpc_envstate_nompc",
    "tdmpc_envstate_nompc_q2",
    "tdmpc_image_mpc",
]

PI0 = [
    "pi0_tiny_aloha_emptycam_f32",
    "pi0_tiny_bf16",
    "pi0_tiny_expertonly_f32",
    "pi0_tiny_f32",
    "pi0_tiny_frozenvision_f32",
]

VQBET = ["vqbet_phase1", "vqbet_phase2", "vqbet_phase2_sequential", "vqbet_transition"]
