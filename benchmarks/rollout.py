"""How fast policies act: many environments at once, one environment, and whole episodes of a simulator.

    python benchmarks/rollout.py [batch_size=200] [variants=plain,graph] [policies=diffusion,act,vqbet,tdmpc] [...]

Every key of `robolearn-train` may be given; weights are random, frames too. Variants:

    plain     predictions launched one by one, float32 (TF32)
    graph     predictions replayed as CUDA graphs, with bfloat16 (``use_amp=false``: without)
    compiled  and what the policy acts with compiled

For each policy and variant: the milliseconds of a prediction for one environment and for ``batch_size`` of them, and
predictions a second against those of one environment after the other. With ``episodes=200`` the first policy also
runs so many episodes of its simulator, ``batch_size`` side by side, in processes of their own; ``spawn_s`` is what
these take to start. Prints tables and, as its last line, the figures as JSON.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from robolearn.agent import Agent
from robolearn.config.build import build, build_policy
from robolearn.config.devices import pick_device, use_fast_kernels
from robolearn.envs.factory import EnvFactory
from robolearn.normalize import Normalizer
from robolearn.rollouts.evaluation import seeded
from robolearn.rollouts.rollout import Observation, rollout
from robolearn.system.paths import conf_dir
from robolearn.types import Feature, Spec

OWN = {
    "batch_size": "200",
    "variants": "plain,graph",
    "policies": "diffusion,act,vqbet,tdmpc",
    "episodes": "0",
    "repeats": "10",
}
"""The benchmark's own keys."""

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"cuda_graph": False},
    "graph": {"cuda_graph": None, "amp_dtype": torch.bfloat16},
    "compiled": {"cuda_graph": None, "amp_dtype": torch.bfloat16, "compile": True},
}

IMAGES = {"act": ("observation.images.top", (480, 640), 14), "tdmpc": ("observation.image", (84, 84), 4)}
"""Camera, its pixels and the numbers of state and action; PushT's where a policy has none here."""


def main() -> None:
    """Measure every policy in every variant."""
    own, overrides = dict(OWN), []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(argument)
    overrides = ["env=pusht", "job_name=benchmark", "output_dir=unused", *overrides]
    size, repeats = int(own["batch_size"]), int(own["repeats"])
    rows: list[dict[str, Any]] = []
    policies = own["policies"].split(",")
    print(f"{'policy':>10} {'variant':>9} {'one: ms':>9} {f'{size}: ms':>9} {'predictions/s':>14} {'one by one':>11}")
    for name in policies:
        cfg = config(name, overrides)
        device = pick_device(cfg.device)
        use_fast_kernels(device)
        for variant in own["variants"].split(","):
            agent, spec = make_agent(name, variant, cfg, device)
            one, many = (prediction(agent, spec, count, repeats) for count in (1, size))
            row = {"policy": name, "variant": variant, "one_ms": 1e3 * one, "batch_ms": 1e3 * many, "batch_size": size}
            rows.append({**row, "predictions_per_s": size / many, "one_by_one_per_s": 1 / one})
            print(
                f"{name:>10} {variant:>9} {1e3 * one:>9.2f} {1e3 * many:>9.2f} {size / many:>14.0f} {1 / one:>11.0f}",
                flush=True,
            )
    whole: list[dict[str, Any]] = []
    if int(own["episodes"]):
        print(f"{'policy':>10} {'variant':>9} {'episodes':>9} {'seconds':>9} {'of policy':>10} {'spawn s':>9}")
        cfg = config(policies[0], overrides)
        for variant in own["variants"].split(","):
            whole.append(run_episodes(policies[0], variant, cfg, int(own["episodes"]), size))
            print(
                f"{policies[0]:>10} {variant:>9} {whole[-1]['episodes']:>9} {whole[-1]['seconds']:>9.1f} "
                f"{whole[-1]['policy_s']:>10.1f} {whole[-1]['spawn_s']:>9.1f}",
                flush=True,
            )
    print(json.dumps(rounded({"predictions": rows, "episodes": whole})))


def config(policy: str, overrides: Sequence[str]) -> DictConfig:
    """The configuration of a policy."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=[f"policy={policy}", *overrides])
    with open_dict(cfg):  # backbones that are fetched elsewhere say nothing about speed
        if "pretrained_backbone_weights" in cfg.policy:
            cfg.policy.pretrained_backbone_weights = None
    return cfg


def make_agent(
    name: str, variant: str, cfg: DictConfig, device: torch.device, spec: Spec | None = None
) -> tuple[Agent, Spec]:
    """An agent of random weights, and what it observes."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    if spec is None:
        camera, pixels, numbers = IMAGES.get(name, ("observation.image", (96, 96), 2))
        features = {camera: Feature("VISUAL", (3, *pixels)), "observation.state": Feature("STATE", (numbers,))}
        spec = Spec(features, Feature("ACTION", (numbers,)), 10.0)
    policy = build_policy(cfg, spec).to(device).eval()
    limits = {"mean": 0.5, "std": 0.3, "min": 0.0, "max": 512.0}
    stats = {
        key: {n: torch.full((3, 1, 1) if f.kind == "VISUAL" else f.shape, v) for n, v in limits.items()}
        for key, f in {**spec.observation, "action": spec.action}.items()
    }
    normalizer = Normalizer(spec, policy.normalization_mapping, stats).to(device)
    options = dict(OPTIONS[variant])
    if variant != "plain" and not cfg.use_amp and any(text.startswith("use_amp=") for text in sys.argv):
        del options["amp_dtype"]
    return Agent(policy, normalizer, device, **options), spec


def prediction(agent: Agent, spec: Spec, count: int, repeats: int) -> float:
    """Median seconds of a prediction for so many environments; the first ones compile and capture."""
    generator = np.random.default_rng(0)
    seen: Observation = {
        key: generator.integers(0, 256, (count, *f.shape), dtype=np.uint8)
        if f.kind == "VISUAL"
        else generator.random((count, *f.shape), dtype=np.float32)
        for key, f in spec.observation.items()
    }
    taken = []
    agent.reset()
    for _ in range(repeats + 4):
        started = time.perf_counter()
        agent(seen)
        taken.append(time.perf_counter() - started)
        for _ in range(agent.policy.spec.n_action_steps - 1):
            agent(seen)
    return float(np.median(taken[4:]))


class Timed:
    """An actor that sums the seconds its agent takes."""

    def __init__(self, agent: Agent) -> None:
        self.agent, self.seconds = agent, 0.0
        self.reset = agent.reset

    def __call__(self, observation: Observation) -> np.ndarray:
        """As the agent."""
        started = time.perf_counter()
        actions = self.agent(observation)
        self.seconds += time.perf_counter() - started
        return actions


def run_episodes(name: str, variant: str, cfg: DictConfig, count: int, size: int) -> dict[str, Any]:
    """Whole episodes, as an evaluation runs them, compilation and capture included."""
    simulator: EnvFactory = build("env", cfg)
    started = time.perf_counter()
    places = min(size, count)
    env = simulator.make_vec(places, use_async=True)
    spawn = time.perf_counter() - started
    try:
        device = pick_device(cfg.device)
        timed = Timed(make_agent(name, variant, cfg, device, simulator.spec)[0])
        started = time.perf_counter()
        with seeded(0):
            for first in range(0, count, places):
                rollout(env, timed, range(first, min(first + places, count)))
        seconds = time.perf_counter() - started
    finally:
        env.close()
    row = {"policy": name, "variant": variant, "episodes": count, "seconds": seconds, "policy_s": timed.seconds}
    return {**row, "spawn_s": spawn}


def rounded(value: Any) -> Any:
    """With three decimals, at any depth."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
