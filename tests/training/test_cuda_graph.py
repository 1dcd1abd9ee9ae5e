"""The parts of CUDA graphs that need no GPU: when one is captured, what it gives back, and the keys that ask for it."""

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes.training import CPU, SPEC, Line
from omegaconf import OmegaConf
from torch import Tensor, nn

from robolearn.agent import Agent
from robolearn.config.devices import pick_acting_graph, pick_compile, pick_cuda_graph
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.nn.unet import Conv, Upsample1d, at_autocast_precision
from robolearn.training import cuda_graph
from robolearn.training.cuda_graph import CudaGraphed
from robolearn.training.optim import is_capturable, make_capturable
from robolearn.types import Batch


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures without a device: the sizes of the batches that were captured; a capture runs nothing."""
    sizes: list[int] = []

    class Graph:
        def __init__(self, function: Any, batches: list[Batch]) -> None:
            self.function = function
            sizes.append(len(batches[0]["x"]))

        def __call__(self, batches: list[Batch]) -> list[dict[str, Tensor]]:
            return self.function(batches)

    monkeypatch.setattr(cuda_graph, "_capture", Graph)
    monkeypatch.setattr(cuda_graph, "_on_side_stream", lambda function, batches: function(batches))
    return sizes


def counting() -> tuple[list[float], Any]:
    seen: list[float] = []

    def function(batches: list[Batch]) -> list[dict[str, Tensor]]:
        seen.append(float(batches[0]["x"].sum()))
        return [{"sum": batches[0]["x"].sum()}]

    return seen, function


def test_every_call_counts_once(captures: list[int]) -> None:
    seen, function = counting()
    captured = CudaGraphed(function, "It", warmup=3)
    results = [float(captured([{"x": torch.full((1,), float(i))}])[0]["sum"]) for i in range(6)]
    assert results == seen == [0, 1, 2, 3, 4, 5]
    assert captures == [1]


def test_another_shape_or_key_is_captured_anew(captures: list[int]) -> None:
    _, function = counting()
    captured = CudaGraphed(function, "It", warmup=1)
    for size, key in [(1, "a"), (1, "a"), (2, "a"), (2, "a"), (2, "b"), (2, "b"), (2, "b")]:
        captured([{"x": torch.ones(size)}], key=key)
    assert captures == [1, 2, 2]


@pytest.mark.parametrize(("keep", "count"), [(1, 4), (2, 2)])
def test_as_many_graphs_are_kept_as_asked(captures: list[int], keep: int, count: int) -> None:
    _, function = counting()
    captured = CudaGraphed(function, "It", warmup=0, max_graphs=keep)
    for size in [1, 2, 1, 2]:
        captured([{"x": torch.ones(size)}])
    assert len(captures) == count


def test_a_capture_that_fails_is_told_once_and_costs_no_call(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, captures: list[int]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(cuda_graph, "_capture", fail)
    seen, function = counting()
    captured = CudaGraphed(function, "The update", warmup=1)
    with caplog.at_level(logging.WARNING):
        for i in range(4):
            captured([{"x": torch.full((1,), float(i))}])
    assert seen == [0, 1, 2, 3]
    assert [r.message for r in caplog.records] == [
        "The update runs without a CUDA graph, several times slower: operation not permitted when stream is capturing"
    ]
    with pytest.raises(RuntimeError, match="not permitted"):
        CudaGraphed(function, "The update", required=True, warmup=0)([{"x": torch.ones(1)}])


def test_results_come_back_in_their_shapes() -> None:
    results = [{"a": torch.tensor(1.0), "b": torch.arange(6.0).view(2, 3)}, {}, {"c": torch.ones(2)}]

    class Nothing:
        def replay(self) -> None:
            pass

    again = cuda_graph._Graph(Nothing(), [{"x": torch.zeros(2)}], results)([{"x": torch.ones(2)}])  # type: ignore[arg-type]
    for one, other in zip(results, again, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def optimizer_of(rate: float = 0.1) -> tuple[nn.Parameter, torch.optim.Optimizer]:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=rate)
    weight.grad = torch.ones(3)
    optimizer.step()
    return weight, optimizer


def test_a_captured_optimizers_state_is_saved_as_any_other() -> None:
    _, plain = optimizer_of()
    before = plain.state_dict()
    make_capturable(plain, CPU)
    assert isinstance(plain.param_groups[0]["lr"], Tensor)
    assert plain.param_groups[0]["capturable"]
    after = plain.state_dict()
    assert after["param_groups"] == [group | {"lr": pytest.approx(0.1)} for group in before["param_groups"]]
    assert all(type(group["lr"]) is float for group in after["param_groups"])


def test_a_saved_state_is_restored_by_either_kind() -> None:
    weight, first = optimizer_of()
    make_capturable(first, CPU)
    state = first.state_dict()
    other, second = optimizer_of(rate=0.5)
    with torch.no_grad():
        other.copy_(weight)
    second.load_state_dict(copy.deepcopy(state))
    third = optimizer_of(rate=0.5)[1]
    make_capturable(third, CPU)
    third.load_state_dict(copy.deepcopy(state))
    assert isinstance(third.param_groups[0]["lr"], Tensor)
    # On a CPU a capturable step is refused, so the step is a plain one.
    plain = torch.optim.AdamW([weight], lr=0.1)
    plain.load_state_dict(copy.deepcopy(third.state_dict()))
    for one, parameter in ((plain, weight), (second, other)):
        parameter.grad = torch.full((3,), 2.0)
        one.step()
    torch.testing.assert_close(weight, other, rtol=0, atol=0)


def config(**keys: Any) -> Any:
    return OmegaConf.create({"cuda_graph": True, "use_amp": False, "amp_dtype": "bfloat16"} | keys)


def test_cuda_graph_true_tells_why_it_cannot_be() -> None:
    policy, (_, adamw) = Line(), optimizer_of()
    gpu = torch.device("cuda")
    with pytest.raises(UserError, match="cuda_graph=true: device=cpu is no CUDA GPU, or set cuda_graph=false"):
        pick_cuda_graph(config(), CPU, policy, adamw)
    with pytest.raises(UserError, match="float16 looks at every gradient; use bfloat16"):
        pick_cuda_graph(config(use_amp=True, amp_dtype="float16"), gpu, policy, adamw)
    sgd = torch.optim.SGD(policy.parameters(), lr=0.1)
    assert not is_capturable(sgd)
    with pytest.raises(UserError, match="SGD keeps its step on the host; use adamw"):
        pick_cuda_graph(config(), gpu, policy, sgd)
    policy.spec = replace(policy.spec, capturable=False)
    with pytest.raises(UserError, match="Line says that it cannot be captured"):
        pick_cuda_graph(config(), gpu, policy, adamw)
    with pytest.raises(UserError, match="device=cpu is no CUDA GPU"):
        pick_acting_graph(True, CPU, policy)


def test_cuda_graph_null_is_quiet_where_it_cannot_be() -> None:
    policy, (_, adamw) = Line(), optimizer_of()
    assert pick_cuda_graph(config(cuda_graph=None), CPU, policy, adamw) is False
    assert pick_cuda_graph(config(cuda_graph=None), torch.device("cuda"), policy, adamw) is None
    assert pick_cuda_graph(config(cuda_graph=False), torch.device("cuda"), policy, adamw) is False


def test_compile_true_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert pick_compile(None, CPU) is False
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="compile=true: no C compiler is here"):
        pick_compile(True, CPU)
    assert pick_compile(None, torch.device("cuda")) is False
    assert "no C compiler" in caplog.text


class Counting(Line):
    """Acts with the number of predictions since the reset."""

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        count = state.get("count", torch.zeros(())) + 1
        return count.expand(len(observation["observation.state"]), 1, 2), {"count": count}


def test_an_agent_remembers_until_it_is_reset() -> None:
    agent = Agent(Counting(), Normalizer(SPEC, {}), CPU)
    seen = {"observation.state": torch.zeros(1, 2).numpy()}
    assert [agent(seen)[0, 0] for _ in range(3)] == [1, 2, 3]
    agent.reset()
    assert agent(seen)[0, 0] == 1


@pytest.mark.parametrize(
    "layer", [Conv(3, 5, 5, padding=2), Conv(3, 5, 3, stride=2, padding=1), Conv(3, 5, 1), Upsample1d(3)]
)
def test_convolutions_are_matrix_products(layer: Any) -> None:
    x = torch.randn(2, 8, 3)
    torch.testing.assert_close(layer.product(x), layer(x))


def test_weights_are_converted_once_for_a_loop() -> None:
    layer, x = nn.Sequential(Conv(3, 8, 3, padding=1), nn.GroupNorm(2, 8)), torch.randn(2, 8, 3)
    assert at_autocast_precision(layer, CPU) is layer
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(at_autocast_precision(layer[0], CPU)(x), layer[0](x), rtol=0, atol=1e-2)
