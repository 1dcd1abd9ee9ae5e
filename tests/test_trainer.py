"""The training loop: cadences, gradients, the average of weights, precision, and losses that are not finite."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import processes
from fakes.training import CPU, Counting, Line, metrics, saved, status, trained, trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robolearn.checkpoints.store import load_models
from robolearn.errors import UserError
from robolearn.types import Batch


def steps_of(folder: Path, prefix: str) -> list[int]:
    """The steps whose line has a scalar of this prefix."""
    return [line["step"] for line in metrics(folder) if any(key.startswith(prefix) for key in line)]


def test_trains_for_as_many_updates_as_asked(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=7)
    made.train()
    assert made.step == made.update.policy.calls == 7
    assert status(tmp_path)["step"] == 7


def test_learns(tmp_path: Path) -> None:
    trainer(tmp_path, steps=60, log=10, lr=0.2).train()
    losses = [line["train/loss"] for line in metrics(tmp_path)]
    assert losses[-1] < losses[0] / 4


def test_logs_at_its_cadence(tmp_path: Path) -> None:
    trainer(tmp_path, steps=8, log=3).train()
    assert steps_of(tmp_path, "train/") == [3, 6]


def test_log_freq_0_logs_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, log=0).train()
    assert metrics(tmp_path) == []


def test_saves_at_its_cadence_and_at_the_end(tmp_path: Path) -> None:
    trainer(tmp_path, steps=11, save=4, keep_last=9).train()
    assert saved(tmp_path) == [4, 8, 11]
    assert (tmp_path / "checkpoints/last").readlink() == Path("00000011")


def test_save_freq_0_saves_at_the_end_only(tmp_path: Path) -> None:
    trainer(tmp_path, steps=11, save=0, keep_last=9).train()
    assert saved(tmp_path) == [11]


def test_save_checkpoint_false_saves_nothing(tmp_path: Path) -> None:
    trainer(tmp_path, checkpoint=False).train()
    assert not (tmp_path / "checkpoints").exists()
    assert status(tmp_path)["state"] == "finished"


def test_evaluates_at_its_cadence_and_at_the_end(tmp_path: Path) -> None:
    evaluator = Counting()
    trainer(tmp_path, steps=11, evaluate=5, evaluator=evaluator).train()
    assert evaluator.folders == ["00000005", "00000010", "00000011"]
    assert steps_of(tmp_path, "eval/") == [5, 10, 11]


@pytest.mark.parametrize("freq", [0, -1])
def test_eval_freq_0_or_less_evaluates_nothing(tmp_path: Path, freq: int) -> None:
    evaluator = Counting()
    assert trainer(tmp_path, evaluate=freq, evaluator=evaluator).train() is None
    assert evaluator.calls == 0


def test_without_a_simulator_nothing_is_evaluated(tmp_path: Path) -> None:
    assert trainer(tmp_path, evaluate=3, evaluator=None).train() is None
    assert steps_of(tmp_path, "eval/") == []


def test_training_and_evaluation_of_one_step_share_a_line(tmp_path: Path) -> None:
    trainer(tmp_path, steps=6, log=3, evaluate=3, evaluator=Counting()).train()
    assert [line["step"] for line in metrics(tmp_path)] == [3, 6]
    assert all({"train/loss", "eval/success_rate"} <= line.keys() for line in metrics(tmp_path))


def test_the_last_metric_is_returned(tmp_path: Path) -> None:
    value = trainer(tmp_path, steps=6, evaluate=3, evaluator=Counting()).train()
    assert value == metrics(tmp_path)[-1]["eval/success_rate"]


def test_evaluation_leaves_training_as_it_was(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "a"), trained(tmp_path / "b", evaluate=2, evaluator=Counting())
    assert torch.equal(one.update.policy.line.weight, other.update.policy.line.weight)


def test_logged_loss_is_the_mean_since_the_line_before(tmp_path: Path) -> None:
    trainer(tmp_path / "each", steps=6, log=1).train()
    trainer(tmp_path / "means", steps=6, log=3).train()
    losses = [line["train/loss"] for line in metrics(tmp_path / "each")]
    means = [line["train/loss"] for line in metrics(tmp_path / "means")]
    assert means == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_learning_rate_gradient_norm_and_throughput_are_logged(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=2, log=1)
    made.read_metrics, measured = lambda: kept.append(measured()) or kept[-1], made.read_metrics
    kept: list[dict[str, float]] = []
    made.train()
    names = {"train/loss", "train/grad_norm", "train/lr/policy", "train/samples_per_s", "train/data_wait"}
    assert names <= kept[0].keys()
    assert [scalars["train/lr/policy"] for scalars in kept] == pytest.approx([0.025, 0.05])


def test_accumulated_batches_equal_a_big_one(tmp_path: Path) -> None:
    one = trained(tmp_path / "big", batch_size=12, policy=Line(noise=0.0), log=1)
    many = trained(tmp_path / "small", batch_size=4, policy=Line(noise=0.0), log=1, gradient_accumulation_steps=3)
    torch.testing.assert_close(one.update.policy.line.weight, many.update.policy.line.weight)
    big, small = metrics(tmp_path / "big"), metrics(tmp_path / "small")
    assert [line["train/loss"] for line in big] == pytest.approx([line["train/loss"] for line in small], rel=1e-4)
    assert [line["train/grad_norm"] for line in big] == pytest.approx([line["train/grad_norm"] for line in small])


def first_move(folder: Path, clip: float | None) -> float:
    """How far the weights move in the first update of plain gradient descent at rate 1."""
    made = trained(folder, steps=1, log=1, optimizer=torch.optim.SGD, lr=1.0, warmup=0, grad_clip_norm=clip)
    return nn.utils.get_total_norm([p.detach() for p in made.update.policy.parameters()]).item()  # from 0


def test_gradients_are_clipped(tmp_path: Path) -> None:
    assert first_move(tmp_path, clip=0.01) == pytest.approx(0.01, rel=1e-3)


def test_gradients_are_not_clipped_when_null(tmp_path: Path) -> None:
    assert first_move(tmp_path, clip=None) == pytest.approx(metrics(tmp_path)[0]["train/grad_norm"], rel=1e-4)


def test_logged_gradient_norm_is_that_before_clipping(tmp_path: Path) -> None:
    first_move(tmp_path / "clipped", clip=0.01)
    first_move(tmp_path / "not", clip=None)
    norms = [metrics(tmp_path / name)[0]["train/grad_norm"] for name in ("clipped", "not")]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 0.1


def test_the_average_of_weights_acts_and_is_saved(tmp_path: Path) -> None:
    evaluator, seen = Counting(), []
    made = trainer(
        tmp_path, evaluate=12, evaluator=lambda agent, *a, **k: seen.append(agent) or evaluator(agent, *a, **k)
    )
    averaged = trainer(tmp_path / "ema", evaluate=12, evaluator=made.evaluator, ema=True)
    made.train()
    averaged.train()
    assert seen[0].policy is made.update.policy
    assert seen[1].policy is averaged.update.ema.model
    assert not torch.equal(averaged.update.ema.model.line.weight, averaged.update.policy.line.weight)
    read = Line()
    load_models(tmp_path / "ema/checkpoints/last", {"policy": read})
    assert torch.equal(read.line.weight, averaged.update.ema.model.line.weight)


def test_the_average_does_not_change_what_is_trained(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "a"), trained(tmp_path / "b", ema=True)
    assert torch.equal(one.update.policy.line.weight, other.update.policy.line.weight)


class Pretrained(Line):
    """Loads weights before its first step."""

    def load_pretrained(self) -> None:
        with torch.no_grad():
            self.line.weight.fill_(7.0)


def test_pretrained_weights_are_loaded_once(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=1, policy=Pretrained())
    made.train()
    assert (made.update.policy.line.weight > 6).all()
    again = trainer(tmp_path, steps=4, policy=Pretrained())
    again.update.policy.load_pretrained = None  # a call would raise
    again.train()


def test_the_average_starts_from_pretrained_weights(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=1, policy=Pretrained(), ema=True)
    made.train()
    assert (made.update.ema.model.line.weight > 6).all()


def nan() -> float:
    return math.nan


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("log", [1, 3, 5, 100])
def test_a_loss_that_is_not_finite_ends_the_run_and_its_step_is_named(tmp_path: Path, bad: float, log: int) -> None:
    made = trainer(tmp_path, steps=12, log=log, save=0, policy=Line(at={7: lambda: bad}))
    with pytest.raises(UserError, match=r"loss was not finite at step 7; lower optimizer.lr"):
        made.train()
    assert status(tmp_path)["state"] == "failed"
    assert "at step 7" in status(tmp_path)["error"]


def test_its_step_is_exact_with_accumulated_batches(tmp_path: Path) -> None:
    # Call 20 is the second of update 7.
    made = trainer(tmp_path, log=5, save=0, policy=Line(at={20: nan}), gradient_accumulation_steps=3)
    with pytest.raises(UserError, match=r"not finite at step 7;"):
        made.train()


def test_its_step_is_exact_after_a_resume(tmp_path: Path) -> None:
    trainer(tmp_path, steps=4, log=5, save=4).train()
    made = trainer(tmp_path, steps=12, log=5, save=0, policy=Line(at={3: nan}))
    with pytest.raises(UserError, match=r"not finite at step 7;"):
        made.train()


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    made = trainer(tmp_path, log=0, save=4, policy=Line(at={7: nan}))
    with pytest.raises(UserError, match=r"not finite at step 7;"):
        made.train()
    assert saved(tmp_path) == [4]


def test_nothing_logged_and_nothing_saved_still_tells_of_it(tmp_path: Path) -> None:
    made = trainer(tmp_path, log=0, checkpoint=False, policy=Line(at={7: nan}))
    with pytest.raises(UserError, match=r"not finite at step 7;"):
        made.train()


def test_float16_has_no_scaler_on_the_cpu(tmp_path: Path) -> None:
    made = trainer(tmp_path, amp_dtype=torch.float16)
    assert not made.update.scaler.is_enabled()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_forward_passes_run_in_the_precision_asked_for(tmp_path: Path, dtype: torch.dtype) -> None:
    made = trainer(tmp_path, steps=2, amp_dtype=dtype)
    seen = []
    made.update.policy.line.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    made.train()
    assert set(seen) == {dtype}
    assert made.update.policy.line.weight.dtype == torch.float32
    assert metrics(tmp_path) == []


def test_transforms_see_training_batches(tmp_path: Path) -> None:
    seen: list[Batch] = []
    trainer(tmp_path, steps=2, transforms=[lambda batch: seen.append(batch) or batch]).train()
    assert len(seen) == 2


def test_the_policy_hears_of_every_step(tmp_path: Path) -> None:
    made = trainer(tmp_path, steps=5, gradient_accumulation_steps=2)
    calls = []
    made.update.policy.after_step = lambda: calls.append(1)
    made.train()
    assert len(calls) == 5


def test_worker_threads_change_nothing(tmp_path: Path) -> None:
    one, other = trained(tmp_path / "a"), trained(tmp_path / "b", num_workers=2)
    assert torch.equal(one.update.policy.line.weight, other.update.policy.line.weight)


class NoReading(TorchDispatchMode):
    """Raises where a tensor's value is read on the host, which on a GPU would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"ema": True}, {"gradient_accumulation_steps": 2}, {"grad_clip_norm": None}])
def test_an_update_waits_for_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    made = trainer(tmp_path, optimizer=torch.optim.SGD, **options)
    updates = made.phases[0].updates(0, made.run_rollout)
    with NoReading():
        for step in range(3):
            made.metrics.add(4, made.update(next(updates), step))


def test_a_failure_is_told_in_the_status(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("the arm\nfell off")

    with pytest.raises(RuntimeError, match="fell off"):
        trainer(tmp_path, policy=Line(at={3: fail})).train()
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["error"] == "RuntimeError: the arm"
    assert status(tmp_path)["step"] == 2


def test_the_device_of_means_is_the_trainers(tmp_path: Path) -> None:
    assert trainer(tmp_path).metrics.device == CPU


IMPORTS = """
import sys, robolearn.trainer
names = sorted(name for name in sys.modules if name.split(".")[0] in ("robolearn", "gymnasium"))
print(*names)
"""


def test_the_trainer_knows_protocols_only() -> None:
    done = processes.run([sys.executable, "-c", IMPORTS])
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    policies = [name for name in names if name.startswith("robolearn.policies.")]
    assert policies == ["robolearn.policies.base"]
    foreign = ("gymnasium", "robolearn.envs", "robolearn.rollouts", "robolearn.checkpoints.lerobot", "robolearn.config")
    assert [name for name in names if name.startswith(foreign)] == []
    assert len(names) < 40
