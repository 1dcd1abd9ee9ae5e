"""Every policy keeps the contract, and the test of the contract finds policies that don't."""

import dataclasses
import inspect
import re
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fakes.act import SIZES as ACT
from fakes.pi0 import TINY, VOCABULARY, make_spec
from fakes.policy import SIZES as DIFFUSION
from fakes.policy import spec
from fakes.tdmpc import SIZES as TDMPC
from fakes.vqbet import SIZES as VQBET
from torch import Tensor, nn

from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.diffusion import DiffusionPolicy
from robolearn.policies.pi0 import Pi0Policy
from robolearn.policies.tdmpc import TdmpcPolicy
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.testing import check_policy, make_batch
from robolearn.types import Batch, Feature, Spec, Window

PAGE = Path(__file__).resolve().parents[2] / "docs" / "own_policy.md"
STATE, ENVIRONMENT, CAMERA = spec(), spec(environment=True), spec(cameras=1, size=64)
EVERYTHING = spec(cameras=1, environment=True, size=64)


def pi0(spec: Spec, **options: Any) -> Pi0Policy:
    """A tiny policy that reads instructions by their bytes."""

    def tokenize(tasks: Any) -> tuple[Tensor, Tensor]:
        tokens = torch.full((len(tasks), 20), 0)
        for row, task in zip(tokens, tasks, strict=True):
            row[: len(task)] = torch.tensor([ord(c) % VOCABULARY for c in task])
        return tokens, tokens > 0

    policy = Pi0Policy(spec, **(TINY | options))
    policy.tokenizer = tokenize
    return policy


act = partial(ActPolicy, **ACT)
diffusion = partial(DiffusionPolicy, **(DIFFUSION | {"do_mask_loss_for_padding": True, "crop_shape": [48, 48]}))
tdmpc = partial(TdmpcPolicy, **TDMPC)
vqbet = partial(VqbetPolicy, **(VQBET | {"crop_shape": [48, 48]}))
# What the last layer of the language model makes of its tokens nobody reads.
UNREAD = {
    "unused_parameters": [
        "paligemma.language.norm",
        *(f"paligemma.language.layers.1.{name}" for name in ("mlp", "post_attention_layernorm")),
        *(f"paligemma.language.layers.1.self_attn.{name}_proj" for name in ("q", "o")),
    ]
}

CASES: dict[str, tuple[Callable[..., Policy], Spec, dict[str, Any]]] = {
    "act of a camera": (act, CAMERA, {}),
    "act of states": (act, ENVIRONMENT, {}),
    "act without a latent": (partial(act, use_vae=False), EVERYTHING, {}),
    "act with an ensemble": (partial(act, n_action_steps=1, temporal_ensemble_coeff=0.01), ENVIRONMENT, {}),
    "diffusion of a camera": (diffusion, CAMERA, {}),
    "diffusion of states": (diffusion, ENVIRONMENT, {}),
    "diffusion with ddim": (partial(diffusion, noise_scheduler_type="DDIM"), EVERYTHING, {}),
    "diffusion that counts padding": (
        partial(diffusion, do_mask_loss_for_padding=False),
        ENVIRONMENT,
        {"masks_padding": False},
    ),
    "pi0 of a camera": (pi0, make_spec(), UNREAD),
    "pi0 of states": (pi0, ENVIRONMENT, {"unused_parameters": ["paligemma.projector", *UNREAD["unused_parameters"]]}),
    "pi0's expert": (partial(pi0, train_expert_only=True), make_spec(cameras=2), {}),
    "tdmpc of a camera": (tdmpc, CAMERA, {}),
    "tdmpc of states": (tdmpc, ENVIRONMENT, {}),
    "tdmpc without planning": (partial(tdmpc, use_mpc=False), STATE, {}),
    "vqbet of a camera": (vqbet, CAMERA, {}),
    "vqbet of everything": (vqbet, EVERYTHING, {}),
    "vqbet with codes one after the other": (partial(vqbet, sequentially_select=True), CAMERA, {}),
}


@pytest.mark.parametrize(("make", "of", "options"), CASES.values(), ids=CASES)
def test_keeps_the_contract(make: Callable[..., Policy], of: Spec, options: dict[str, Any]) -> None:
    check_policy(make, of, **options)


def example(language: str) -> list[str]:
    """The blocks of a language in docs/own_policy.md."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_documented_policy_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_package")
    monkeypatch.setitem(sys.modules, "my_package", module)
    policy, test = example("python")
    exec(policy, module.__dict__)
    found: dict[str, Any] = {}
    exec(test, found)
    found["test_it_keeps_the_contract"]()
    check_policy(module.MlpPolicy, ENVIRONMENT)
    (node,) = (yaml.safe_load(block)["policy"] for block in example("yaml"))
    assert (node.pop("_target_"), node.pop("_partial_")) == ("my_package.MlpPolicy", True)
    defaults = inspect.signature(module.MlpPolicy).parameters
    assert node == {name: defaults[name].default for name in defaults if name != "spec"}


def test_the_documented_contract_is_the_contract() -> None:
    listed = re.findall(r"^\| (.*?) \|", PAGE.read_text(), re.MULTILINE)
    documented = {name for cell in listed for name in re.findall(r"`(\w+)(?:\(.*?\))?`", cell)} - {"PolicySpec"}
    members = {name for name in vars(Policy) if not name.startswith("_")} | {"spec"}
    assert documented == members | {field.name for field in dataclasses.fields(PolicySpec)}
    assert len(members) <= 10


class Sound(Policy):
    """A linear policy that keeps the contract; its children below each break one rule."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = PolicySpec(Window(action=(0, 1)), 2, {})
        self.line = nn.Linear(spec.observation["observation.state"].shape[0], 2 * spec.action.shape[0])

    def predict(self, batch: Batch) -> Tensor:
        return self.line(batch["observation.state"][:, -1]).unflatten(-1, (2, -1))

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        valid = ~batch["action_is_pad"].unsqueeze(-1)
        loss = ((self.predict(batch) - batch["action"]).square() * valid).sum() / valid.sum().clamp(min=1)
        return loss, {"mse": loss.detach()}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        return self.predict(observation), {}


class CountsPadding(Sound):
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.predict(batch) - batch["action"]).square().mean()
        return loss, {}


class Attached(Sound):
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = super().loss(batch)
        return loss, {"mse": loss}


class ReadsValues(Sound):
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, _ = super().loss(batch)
        return loss * (1.0 if loss.item() > 0 else 2.0), {}


class WritesIntoTheBatch(Sound):
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        batch["action"].clamp_(-0.5, 0.5)
        return super().loss(batch)


class NotAScalar(Sound):
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return super().loss(batch)[0].repeat(2), {}


class Unused(Sound):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.spare = nn.Linear(1, 1)


class TwiceInGroups(Sound):
    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"all": list(self.parameters()), "line": list(self.line.parameters())}


class MissingInGroups(Sound):
    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"line": [self.line.weight]}


class TooShort(Sound):
    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        return self.predict(observation)[:, :1], {}


class KeepsHistory(Sound):
    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        before, self.last = getattr(self, "last", 0.0), self.predict(observation)
        return self.last + before, {}


class MixesSamples(Sound):
    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        chunk = self.predict(observation)
        return chunk - chunk.mean(0), {}


class ChangesItsState(Sound):
    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        state.setdefault("calls", torch.zeros(())).add_(1)
        return self.predict(observation), dict(state)


class NoExploring(Sound):
    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        return self.predict(observation) if not explore else self.predict(observation)[:, 0], {}


class Unsaved(Sound):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.offset = torch.randn(())

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        return self.predict(observation) + self.offset, {}


class DropsTooMuch(Sound):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.spec = PolicySpec(Window(action=(0, 1)), 2, {}, drop_n_last_frames=2)


BROKEN: dict[type[Policy], str] = {
    CountsPadding: r"action_is_pad change the loss",
    Attached: r"the metric mse is not detached",
    ReadsValues: r"loss may read a tensor's value on the host .*capturable=False",
    WritesIntoTheBatch: r"loss changes its caller's batch",
    NotAScalar: r"the loss has shape \(2,\)",
    Unused: r"spare.weight gets no gradient",
    TwiceInGroups: r"param_groups holds line.weight more than once",
    MissingInGroups: r"param_groups lacks the trainable parameter line.bias",
    TooShort: r"act gives \(3, 1, 2\), not \(B, T, A\)",
    KeepsHistory: r"fresh episode.* act differs from call to call",
    MixesSamples: r"one sample's observation changes another's actions",
    ChangesItsState: r"act changes the state it was given",
    NoExploring: r"act\(explore=True\) gives \(3, 2\)",
    Unsaved: r"make its tensors buffers",
    DropsTooMuch: r"spec.drop_n_last_frames=2 leaves out frames",
}


def test_a_sound_policy_passes() -> None:
    check_policy(Sound, STATE)


@pytest.mark.parametrize(("broken", "message"), BROKEN.items(), ids=[broken.__name__ for broken in BROKEN])
def test_a_broken_rule_is_named(broken: type[Policy], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_policy(broken, STATE)


def test_a_policy_that_reads_values_says_so() -> None:
    class Said(ReadsValues):
        def __init__(self, spec: Spec) -> None:
            super().__init__(spec)
            self.spec = PolicySpec(Window(action=(0, 1)), 2, {}, capturable=False)

    check_policy(Said, STATE)


def test_a_camera_is_an_image_in_0_to_1() -> None:
    images = Spec({"observation.image": Feature("VISUAL", (3, 4, 4))}, Feature("ACTION", (2,)), 10.0)
    batch = make_batch(Sound(STATE), images)
    assert batch["observation.image"].shape == (3, 1, 3, 4, 4)
    assert 0 <= batch["observation.image"].min() <= batch["observation.image"].max() <= 1
