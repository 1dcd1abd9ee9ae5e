#!/usr/bin/env python
"""Compare policies with recorded runs of the reference: loss, gradients, three updates, action sequences.

    python scripts/check_parity.py FIXTURE_DIR...

A fixture folder holds config.json, stats, a batch, observations, every random draw and what the reference computed
from them; weights come from a rule that depends on the parameter's name. Prints the worst error of each fixture and
exits with 1 when one is beyond its tolerance.
"""

import argparse
import contextlib
import copy
import json
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robolearn.agent import Agent
from robolearn.checkpoints.lerobot import weights
from robolearn.normalize import Normalizer
from robolearn.policies import vqbet
from robolearn.policies.base import Policy
from robolearn.policies.nn.gpt import SelfAttention
from robolearn.policies.pi0 import Pi0Policy
from robolearn.policies.pi0.pi0 import PUBLISHED
from robolearn.policies.tdmpc import planner
from robolearn.training import optim, schedules
from robolearn.types import Batch

# Relative tolerances. Adam turns rounding noise into steps, so errors grow from update to update.
LOSS, GRADIENT, TOTAL_GRADIENT, ACTION = 1e-4, 2e-3, 1e-3, 1e-3
UPDATES = (2e-3, 1e-2, 3e-2)
DELTA = 0.05
ABSOLUTE = 1e-5
# Weights of 8 bits instead of 24 make all of these larger, by this factor; and a step of less than their resolution
# moves a weight by all of it or not at all.
BFLOAT16, ABSOLUTE_STEP = 300.0, 1e-4

# What a function draws, for we may draw the same by another than the reference, in the same order.
DRAWS = {
    "torch.randn": "normal numbers",
    "torch.randn_like": "normal numbers",
    "torch.normal": "normal numbers",
    "torch.rand": "even numbers",
    "Tensor.uniform_": "even numbers",
    "torch.randint": "whole numbers",
    "numpy.random.choice": "whole numbers",  # TD-MPC's two heads
}


class Fixture:
    """One recorded run of the reference, read from its folder."""

    def __init__(self, folder: Path) -> None:
        self.name = f"{folder.resolve().parent.name}/{folder.resolve().name}"
        self.config = _json(folder / "config.json")
        self.expected = _json(folder / "expected.json")
        self.state = _json(folder / "state_dict.json")
        self.stats = load_file(folder / "stats.safetensors")
        self.batch = load_file(folder / "batch.safetensors")
        self.observations = _optional(folder / "select_obs.safetensors")
        self.tensors = _optional(folder / "expected.safetensors")
        self.draws = [(d["phase"], d["fn"], d["key"]) for d in _json(folder / "draws.json")]
        self.drawn = _optional(folder / "draws.safetensors")

        self.tolerance = BFLOAT16 if any(row["dtype"] == "bfloat16" for row in self.state) else 1.0
        if self.config["type"] == "vqbet":
            self._keep_codes_of_now()
        if self.config["type"] == "pi0":
            self._shrink(_json(folder / "../../pi0_tiny_configs.json"))
            self.batch["task_tokens"] = self.batch.pop("lang_tokens")
            self.batch["task_mask"] = self.batch.pop("lang_masks").bool()

    def _keep_codes_of_now(self) -> None:
        """When acting, the reference draws codes for all action tokens; only those of the newest frame are used."""
        now = self.config["n_obs_steps"] - 1
        tokens = now + self.config["n_action_pred_token"]
        for phase, _, key in self.draws:
            if phase.startswith("select"):
                envs = self.tensors["select_action"].shape[1]
                self.drawn[key] = self.drawn[key].view(envs, tokens, -1)[:, now].reshape(-1, 1)

    def _shrink(self, sizes: dict[str, Any]) -> None:
        """pi0 was recorded with small networks, in the precision that its weights have."""
        paligemma = sizes["paligemma_config"]
        given = {"vision": paligemma["vision_config"], "language": paligemma["text_config"]}
        for name in ("vision", "language"):
            self.config[name] = {key: given[name][key] for key in PUBLISHED[name]}
        self.config["expert"] = {key: sizes["gemma_expert_config"][key] for key in PUBLISHED["expert"]}
        self.config["dtype"] = "float32" if self.tolerance == 1.0 else "bfloat16"

    def tokens(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The recording's tokens of tasks (N, L) and which of them count: bytes after a start token."""
        length = self.config["tokenizer_max_length"]
        rows = [[2, *(3 + byte % 250 for byte in f"{task}\n".encode())][:length] for task in tasks]
        tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        return tokens, torch.tensor([[i < len(row) for i in range(length)] for row in rows])

    @property
    def first_step(self) -> int:
        """The update at which the recording begins: VQ-BeT's tokenizer is trained by then, or it is not."""
        phase2 = self.name.rpartition("/")[2].startswith("vqbet_phase2")
        return self.config["n_vqvae_training_steps"] if phase2 else 0

    def weight(self, row: dict[str, Any]) -> Tensor | None:
        """The value of one parameter by the rule in its row; None where the model's own value stays."""
        rule, shape = row["rule"], tuple(row["shape"])
        if rule == "stats":
            feature, stat = row["name"].split(".buffer_")[1].rsplit(".", 1)
            return next(v for k, v in self.stats.items() if k.replace(".", "_") == f"{feature}/{stat}")
        if rule in ("zeros", "ones", "cluster"):
            return torch.full(shape, {"zeros": 0.0, "ones": 1.0, "cluster": 2.0}[rule])
        if rule not in ("fan_in", "norm", "bias", "codebook"):
            return None
        source = row["name"].replace("embed_avg", "embed") if rule == "codebook" else row["name"]
        seed = zlib.crc32(f"{self.name}:{source}".encode()) & 0xFFFFFFFF
        noise = np.random.RandomState(seed).standard_normal(shape)
        if rule == "fan_in":
            noise = noise / np.sqrt(np.prod(shape) / shape[0])
        elif rule == "norm":
            noise = 1 + 0.1 * noise
        elif rule == "bias":
            noise = 0.05 * noise
        else:
            noise = noise * (1.0 if row["name"].endswith("embed_avg") else 0.5)
        return torch.from_numpy(noise.astype(np.float32))

    @contextlib.contextmanager
    def replay(self, phase: str) -> Iterator[None]:
        """While open, torch's sampling functions return the draws recorded in this phase, in order."""
        queue = deque((DRAWS.get(fn, fn), self.drawn[key]) for p, fn, key in self.draws if p == phase)

        def pop(label: str) -> Tensor:
            if not queue or queue[0][0] != label:
                raise AssertionError(f"{phase}: drew {label}, recorded is {queue[0][0] if queue else 'no more'}")
            return queue.popleft()[1].clone()

        def replayed(label: str, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def draw(*arguments: Any, **options: Any) -> Tensor:
                value, asked = pop(label), original(*arguments, **options)
                # The reference shifts the images of all steps as one batch, we know steps and samples apart.
                if value.numel() != asked.numel() or value.shape[1:] != asked.shape[asked.dim() - value.dim() + 1 :]:
                    raise AssertionError(
                        f"{phase}: {label} were asked for {tuple(asked.shape)}, recorded are {tuple(value.shape)}"
                    )
                return value.view(asked.shape).to(asked.dtype)

            return draw

        with contextlib.ExitStack() as stack:
            for name in ("randn", "randn_like", "randint", "normal", "rand", "randperm"):
                draw = replayed(DRAWS.get(f"torch.{name}", f"torch.{name}"), getattr(torch, name))
                stack.enter_context(_patched(torch, name, draw))
            uniform = lambda tensor, *a, **k: tensor.copy_(pop(DRAWS["Tensor.uniform_"]))  # noqa: E731
            stack.enter_context(_patched(torch.Tensor, "uniform_", uniform))
            index = lambda odds: pop("torch.multinomial").view(odds.shape[:-1])  # noqa: E731
            for module in (planner, vqbet):
                stack.enter_context(_patched(module, "sample", index))
            yield
        if queue:
            raise AssertionError(f"{phase}: {len(queue)} recorded draws were not asked for")


class Worst:
    """The largest error of each quantity as a share of its tolerance, and where it was.

    Args:
        tolerance: Factor on all tolerances.
    """

    def __init__(self, tolerance: float = 1.0) -> None:
        self.tolerance = tolerance
        self.shares: dict[str, tuple[float, float, str]] = {}

    def add(self, quantity: str, got: float, want: float, rtol: float, atol: float, where: str = "") -> None:
        """Compare two numbers."""
        error = abs(got - want)
        share = error / (atol * self.tolerance + min(rtol * self.tolerance, 1) * abs(want))
        if not share <= self.shares.get(quantity, (-1.0,))[0]:
            self.shares[quantity] = (
                share if share == share else float("inf"),
                error / (abs(want) + atol),
                where,
            )

    @property
    def missed(self) -> dict[str, str]:
        """What is beyond its tolerance."""
        return {q: f"{e:.1e} at {w}" for q, (share, e, w) in self.shares.items() if share > 1}


def main() -> int:
    """Check every folder given; 1 when one misses."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("fixtures", nargs="+", type=Path, metavar="FIXTURE_DIR")
    torch.set_num_threads(1)
    missed = 0
    for folder in parser.parse_args().fixtures:
        try:
            worst = check(Fixture(folder))
            text = "  ".join(f"{quantity} {error:.1e}" for quantity, (_, error, _) in worst.shares.items())
            failure = "; ".join(f"{q} {m}" for q, m in worst.missed.items())
        except Exception as error:  # a fixture that breaks must not hide the others
            text, failure = "", f"{type(error).__name__}: {error}"
        missed += bool(failure)
        print(f"{'MISS' if failure else 'ok  '} {folder.resolve().name:38} {text} {failure}", flush=True)
    print(f"{missed} missed" if missed else "all pass")
    return int(missed > 0)


def check(fixture: Fixture) -> Worst:
    """Every comparison of one fixture."""
    worst = Worst(fixture.tolerance)
    policy, normalizer = build(fixture)
    expected = fixture.expected
    policy.train(expected["forward_mode"] == "train")
    policy.before_step(fixture.first_step)
    with fixture.replay("forward"):
        loss, components = policy.loss(normalizer.encode(batch(fixture)))
    loss.backward()
    worst.add("loss", loss.item(), expected["loss"], LOSS, ABSOLUTE)
    for name in components.keys() & expected["loss_components"].keys():
        worst.add(name, components[name].item(), expected["loss_components"][name], LOSS, ABSOLUTE)
    check_gradients(fixture, policy, worst)
    if "updates" in expected:
        policy.zero_grad(set_to_none=True)
        check_updates(fixture, policy, normalizer, worst)
    if "select_action" in fixture.tensors:
        check_actions(fixture, policy, normalizer, worst)
    return worst


def build(fixture: Fixture) -> tuple[Policy, Normalizer]:
    """The policy of a fixture with the weights of its rule."""
    policy, normalizer = weights.build(fixture.config)
    if isinstance(policy, Pi0Policy):
        policy.tokenizer = fixture.tokens
    to_ours = weights.rename(fixture.config["type"])
    owners: dict[str, nn.Module] = {"policy": policy, "normalizer": normalizer}
    filled: dict[str, set[str]] = {"policy": set(), "normalizer": set()}
    for row in fixture.state:
        place, value = to_ours(row["name"]), fixture.weight(row)
        if place is None:
            continue
        filled[place[0]].add(place[1])
        target = owners[place[0]].state_dict()[place[1]]
        if value is not None:
            target.copy_(value)
        norm = target.double().norm().item()
        if target.is_floating_point() and abs(norm - row["l2"]) > 1e-4 * max(1, row["l2"]):
            raise AssertionError(f"weights of {row['name']}: norm {norm}, recorded {row['l2']}")
    if any(row["name"].endswith(".attn.bias") for row in fixture.state):
        # The rule fills the causal mask, too, with numbers that are not 0, so that nothing is hidden.
        for module in policy.modules():
            if isinstance(module, SelfAttention):
                module.causal = False
    for owner, module in owners.items():
        if unfilled := module.state_dict().keys() - filled[owner]:
            raise AssertionError(f"no recorded weights for {owner}: {', '.join(sorted(unfilled))}")
    return policy, normalizer


def batch(fixture: Fixture) -> Batch:
    """The recorded batch with a time dimension for every key, also where the reference drops it."""
    ndims = {key: 1 + len(feature["shape"]) for key, feature in fixture.config["input_features"].items()}
    return {k: v.unsqueeze(1) if v.ndim == ndims.get(k) else v.clone() for k, v in fixture.batch.items()}


def gradients(fixture: Fixture, policy: Policy) -> dict[str, Tensor | None]:
    """Gradients by the reference's parameter names."""
    parameters = dict(policy.named_parameters())
    to_ours = weights.rename(fixture.config["type"])
    found = {}
    for name in fixture.expected["grad_norms"]:
        place = to_ours(name)
        if place and place[0] == "policy":
            found[name] = parameters[place[1]].grad
    return found


def check_gradients(fixture: Fixture, policy: Policy, worst: Worst) -> None:
    """Norm of each parameter's gradient, and of all together."""
    expected = fixture.expected
    total = 0.0
    floor = 1e-4 * max(1.0, expected["total_grad_norm"])
    for name, gradient in gradients(fixture, policy).items():
        want = expected["grad_norms"][name]
        # What nothing reads is not computed here, which the reference learns from gradients of exactly 0.
        if (want is None) if gradient is not None else want:
            raise AssertionError(f"gradient of {name}: {'none' if gradient is None else 'one'}, recorded {want}")
        if gradient is not None:
            norm = gradient.double().norm().item()
            total += norm**2
            worst.add("gradient", norm, want, GRADIENT, floor, name)
    worst.add("total", total**0.5, expected["total_grad_norm"], TOTAL_GRADIENT, ABSOLUTE)


def check_updates(fixture: Fixture, policy: Policy, normalizer: Normalizer, worst: Worst) -> None:
    """Three optimizer steps with the recorded optimizer and schedule."""
    expected, setup = fixture.expected, fixture.expected["updates_setup"]
    trained = copy.deepcopy(policy)
    options = {k: v for k, v in setup["optimizer"].items() if k not in ("type", "grad_clip_norm")}
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[setup["optimizer"]["type"]]
    rates = {"backbone": "optimizer_lr_backbone"}
    groups = {name: {"lr": fixture.config[key]} for name, key in rates.items() if key in fixture.config}
    if fixture.config["type"] == "vqbet":
        decay = fixture.config["optimizer_vqvae_weight_decay"]
        groups = {
            "no_decay": {"weight_decay": 0.0},
            "tokenizer": {"lr": fixture.config["optimizer_vqvae_lr"], "weight_decay": decay},
        }
    optimizer = kind(optim.build_param_groups(trained.param_groups(), groups), **options)
    schedule = build_schedule(optimizer, setup)
    for i, want in enumerate(expected["updates"]):
        trained.before_step(fixture.first_step + 1 + i)
        with fixture.replay(f"update{i}"):
            loss, _ = trained.loss(normalizer.encode(batch(fixture)))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained.parameters(), setup["optimizer"]["grad_clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        trained.after_step()
        got = {"loss": loss.item(), "grad_norm": norm.item(), "lr": optimizer.param_groups[0]["lr"]}
        for name, value in got.items():
            worst.add("updates", value, want[name], UPDATES[min(i, 2)], ABSOLUTE, f"{name} of update {i}")
    check_deltas(fixture, policy, trained, worst)


def check_deltas(fixture: Fixture, policy: Policy, trained: Policy, worst: Worst) -> None:
    """How far the updates moved each parameter; those of zero gradient are moved by rounding noise alone."""
    to_ours = weights.rename(fixture.config["type"])
    before, after = policy.state_dict(), trained.state_dict()
    norms = fixture.expected["grad_norms"]
    for name, want in fixture.expected["update_delta_l2"].items():
        place = to_ours(name)
        noise = name in norms and (norms[name] or 0.0) < 1e-5 * fixture.expected["total_grad_norm"]
        if place and place[0] == "policy" and not noise:
            moved = (after[place[1]].double() - before[place[1]].double()).norm().item()
            least = ABSOLUTE if worst.tolerance == 1 else ABSOLUTE_STEP / worst.tolerance
            worst.add("delta", moved, want, DELTA, least, name)


def build_schedule(optimizer: torch.optim.Optimizer, setup: dict[str, Any]) -> Any:
    """The recorded learning-rate schedule."""
    if not setup["scheduler"]:
        return schedules.constant(optimizer, setup["num_training_steps"])
    arguments = dict(setup["scheduler"])
    if arguments["type"] == "vqbet":
        arguments["end_at_zero"] = False
    if arguments["type"] == "cosine_decay_with_warmup":
        arguments["decay_after_warmup"] = False
    kind = arguments.pop("type")
    schedule = getattr(schedules, "diffusers_schedule" if kind == "diffuser" else kind)
    return schedule(optimizer, setup["num_training_steps"], **arguments)


def check_actions(fixture: Fixture, policy: Policy, normalizer: Normalizer, worst: Worst) -> None:
    """The actions of every step of a rollout, through the agent's history and queue."""
    steps = fixture.tensors["select_action"]
    tasks = fixture.expected.get("task") or []
    prompts = [tasks[i % 2] for i in range(steps.shape[1])] if tasks else []
    agent = Agent(policy.eval(), normalizer, torch.device("cpu"), tasks=prompts)
    agent.reset()
    for i, want in enumerate(steps):
        observation = {key: value[i].numpy() for key, value in fixture.observations.items()}
        with fixture.replay(f"select{i}"):
            actions = torch.from_numpy(agent(observation))
        for got, one in zip(actions.flatten().tolist(), want.flatten().tolist(), strict=True):
            worst.add("action", got, one, ACTION, 100 * ABSOLUTE, f"step {i}")


@contextlib.contextmanager
def _patched(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _optional(path: Path) -> dict[str, Tensor]:
    return load_file(path) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
