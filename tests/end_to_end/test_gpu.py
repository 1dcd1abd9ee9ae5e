"""What only a GPU shows: the fast path against the plain one, exact resume, no waiting (``pytest -m gpu``)."""

import copy
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from robolearn.agent import Agent
from robolearn.data.loader import Loader
from robolearn.data.sampling import BatchSampler
from robolearn.normalize import Normalizer
from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy
from robolearn.policies.diffusion import DiffusionPolicy
from robolearn.policies.tdmpc.tdmpc import TdmpcPolicy
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.rng import isolated_rng
from robolearn.training.cuda_graph import CudaGraphed
from robolearn.training.metrics import TrainMetrics
from robolearn.training.schedules import diffusers_schedule
from robolearn.training.update import Update
from robolearn.types import Batch, Feature, Spec, Window

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
STATE = Feature("STATE", (4,))
IMAGE = {"observation.image": Feature("VISUAL", (3, 64, 64)), "observation.state": STATE}
PLAIN = {"observation.environment_state": Feature("ENV", (8,)), "observation.state": STATE}


class Frames:
    """Random frames on the GPU."""

    device = GPU

    def __init__(self, spec: Spec, count: int = 256) -> None:
        generator = torch.Generator(GPU).manual_seed(0)
        shapes = {**spec.observation, "action": spec.action, "next.reward": Feature("STATE", ())}
        self.data = {
            key: torch.rand((count, *feature.shape), generator=generator, device=GPU) * 2 - 1
            for key, feature in shapes.items()
        }

    def batch(self, indices: Tensor, window: Window, *, pin: bool = False) -> Batch:
        indices = indices.pin_memory().to(GPU, non_blocking=True)
        result: Batch = {"index": indices}
        for key, values in self.data.items():
            offsets = {"action": window.action, "next.reward": window.reward}.get(key, window.observation)
            if offsets:
                rows = indices[:, None] + torch.arange(offsets[0], offsets[-1] + 1, device=GPU)
                result[key] = values[rows % len(values)]
                result[f"{key}_is_pad"] = torch.zeros_like(rows, dtype=torch.bool)
        return result


def small_diffusion(observation: dict[str, Feature] | None = None) -> DiffusionPolicy:
    spec = Spec(observation or PLAIN, Feature("ACTION", (2,)), 10.0)
    return DiffusionPolicy(spec, crop_shape=None, down_dims=(64, 128), num_train_timesteps=20)


def small_vqbet() -> VqbetPolicy:
    spec = Spec(IMAGE, Feature("ACTION", (2,)), 10.0)
    return VqbetPolicy(spec, crop_shape=None, n_vqvae_training_steps=6, gpt_n_layer=2)


def small_act() -> ActPolicy:
    spec = Spec(IMAGE, Feature("ACTION", (2,)), 10.0)
    return ActPolicy(
        spec,
        chunk_size=8,
        n_action_steps=8,
        dim_model=64,
        n_heads=4,
        dim_feedforward=64,
        pretrained_backbone_weights=None,
    )


def small_tdmpc() -> TdmpcPolicy:
    return TdmpcPolicy(Spec(IMAGE, Feature("ACTION", (2,)), 10.0))


def make(policy: Policy, spec: Spec, **options: Any) -> Update:
    torch.manual_seed(0)
    policy = policy.to(GPU)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3, fused=True)
    schedule = diffusers_schedule(optimizer, 100, num_warmup_steps=5)
    return Update(policy, Normalizer(spec, {}).to(GPU), optimizer, schedule, GPU, **options)


def batches_of(update: Update, step: int = 0) -> Generator[Batch, None, None]:
    """The batches of the updates from a step on."""
    frames = Frames(spec_of(update.policy))
    sampler = BatchSampler(torch.arange(10, 230), 16, seed=0)
    return Loader(frames, sampler, update.policy.spec.window, GPU, 0).iter_from(step)


def spec_of(policy: Policy) -> Spec:
    observation = PLAIN if isinstance(policy, DiffusionPolicy) and not policy.cameras else IMAGE
    return Spec(observation, Feature("ACTION", (2,)), 10.0)


def losses(update: Update, steps: int, step: int = 0) -> list[list[float]]:
    """Loss and gradient norm of each of so many updates from a step on."""
    with closing(batches_of(update, step)) as batches:
        seen = [update([next(batches)], now) for now in range(step, step + steps)]
    return [[float(scalars["loss"]), float(norm["grad_norm"])] for scalars, norm in seen]


def distance(one: Policy, other: Policy) -> float:
    """Between their weights."""
    squares = [(a - b).square().sum() for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    return float(torch.stack(squares).sum().sqrt())


@pytest.fixture
def same_random_numbers() -> Iterator[None]:
    import torch._inductor.config as inductor

    before, inductor.fallback_random = inductor.fallback_random, True
    torch._dynamo.reset()
    yield
    inductor.fallback_random = before


def rounded_otherwise(policy: DiffusionPolicy, seed: int) -> DiffusionPolicy:
    """The policy with every weight as far off as bfloat16's eight bits may bring it."""
    generator, policy = torch.Generator().manual_seed(seed), copy.deepcopy(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1 + 2**-9 * (2 * torch.rand(weight.shape, generator=generator) - 1))
    return policy


def largest_differences(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of loss and gradient norm, relative and over all steps."""
    return (np.abs(one - other) / np.abs(other)).max(axis=0)


@pytest.mark.parametrize("images", [False, True], ids=["compiled", "images"])
@pytest.mark.usefixtures("same_random_numbers")
def test_the_fast_path_learns_what_the_plain_one_does(images: bool) -> None:
    torch.manual_seed(0)
    start = small_diffusion(IMAGE if images else PLAIN)
    fast = {"amp_dtype": torch.bfloat16, "compile": not images, "cuda_graph": True}
    updates = [make(copy.deepcopy(start), spec_of(start), **options) for options in ({}, fast)]
    # Rounding grows from step to step, because Adam takes full steps along gradients that are all rounding, of which an
    # image encoder has many. How far it may get is seen in plain runs that begin a rounding apart.
    updates += [make(rounded_otherwise(start, seed), spec_of(start)) for seed in range(4)]
    seen = []
    for update in updates:
        torch.manual_seed(1)
        seen.append(np.array(losses(update, 20)))
    expected, found, *others = seen
    spread = np.max([largest_differences(other, expected) for other in others], axis=0)
    assert (largest_differences(found, expected) < 3 * spread).all()
    plain, quick, *rest = (update.policy for update in updates)
    assert distance(plain, quick) < 2 * max(distance(plain, other) for other in rest)


@pytest.mark.parametrize("images", [False, True], ids=["float32", "images"])
def test_a_graph_alone_changes_nothing(images: bool) -> None:
    # In float32 the gradients of a convolution are added up in no fixed order.
    options: dict[str, Any] = {"amp_dtype": torch.bfloat16} if images else {}
    start = small_diffusion(IMAGE if images else PLAIN)
    results = []
    for graph in (False, True):
        update = make(copy.deepcopy(start), spec_of(start), cuda_graph=graph, **options)
        torch.manual_seed(1)
        results.append(losses(update, 20))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-3)


def test_a_resumed_run_with_a_graph_ends_as_one_that_was_not_stopped() -> None:
    start = small_diffusion()
    whole = make(copy.deepcopy(start), spec_of(start), cuda_graph=True)
    torch.manual_seed(1)
    losses(whole, 8)
    saved = copy.deepcopy(
        {
            "policy": whole.policy.state_dict(),
            "optimizer": whole.optimizer.state_dict(),
            "schedule": whole.schedule.state_dict(),
        }
    )
    random = torch.cuda.get_rng_state()
    expected = losses(whole, 8, step=8)
    for graph in (True, False):
        resumed = make(copy.deepcopy(start), spec_of(start), cuda_graph=graph)
        resumed.policy.load_state_dict(saved["policy"])
        resumed.optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
        resumed.schedule.load_state_dict(saved["schedule"])
        torch.cuda.set_rng_state(random)
        np.testing.assert_allclose(losses(resumed, 8, step=8), expected, rtol=1e-4)


def test_vqbet_is_captured_anew_when_its_tokenizer_is_done() -> None:
    start = small_vqbet()
    results = []
    for graph in (False, True):
        update = make(copy.deepcopy(start), spec_of(start), cuda_graph=graph)
        torch.manual_seed(1)
        results.append(losses(update, 14))
    np.testing.assert_allclose(results[0], results[1], rtol=0.02)


@pytest.mark.parametrize("graph", [False, True], ids=["plain", "graph"])
@pytest.mark.parametrize("policy", [small_diffusion, small_act, small_vqbet, small_tdmpc])
def test_an_update_waits_for_nothing(policy: Any, graph: bool) -> None:
    start = policy()
    update = make(start, spec_of(start), cuda_graph=graph)
    batches, metrics = batches_of(update), TrainMetrics(GPU)
    for step in range(12):
        waits = graph and step in (3, 9)  # a capture does, once a phase
        torch.cuda.set_sync_debug_mode("default" if step == 0 or waits else "error")
        try:
            metrics.add(16, update([next(batches)], step))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_capture_that_fails_leaves_stream_and_random_numbers_as_they_were() -> None:
    def looks(batches: Any) -> list[dict[str, Tensor]]:
        drawn = torch.rand(3, device=GPU)
        return [{"x": drawn * (1 if float(drawn.sum()) > 0 else 2)}]

    torch.manual_seed(0)
    expected = [torch.rand(3, device=GPU) for _ in range(4)]
    torch.manual_seed(0)
    stream = torch.cuda.current_stream()
    captured = CudaGraphed(looks, "It", warmup=1)
    found = [captured([{"x": torch.ones(1, device=GPU)}])[0]["x"] for _ in range(4)]
    assert torch.cuda.current_stream() == stream
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("policy", [small_diffusion, small_act, small_vqbet, small_tdmpc])
def test_acting_with_a_graph_is_acting_without(policy: Any, amp: torch.dtype | None) -> None:
    torch.manual_seed(0)
    start = policy()
    if isinstance(start, TdmpcPolicy) and amp:
        pytest.skip("a plan's elites change with the rounding")
    spec, start = spec_of(start), start.to(GPU).eval()
    seen = {key: np.random.rand(3, *f.shape).astype(np.float32) for key, f in spec.observation.items()}

    def acts(agent: Agent) -> np.ndarray:
        with isolated_rng(7):
            agent.reset()
            return np.stack([agent(seen) for _ in range(4 * start.spec.n_action_steps)])

    normalizer = Normalizer(spec, {}).to(GPU)
    plain = acts(Agent(start, normalizer, GPU, amp, cuda_graph=False))
    agent = Agent(start, normalizer, GPU, amp, cuda_graph=True)
    first, second = acts(agent), acts(agent)
    np.testing.assert_allclose(first, plain, atol=0.02 if amp else 2e-3)
    np.testing.assert_allclose(second, first, atol=1e-2 if amp else 1e-3)
