"""Runs that are interrupted or killed and go on: nothing is lost, nothing is there twice."""

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import processes
from fakes.training import Counting, Line, metrics, saved, status, trained, trainer
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parents[1]


class Killed(Exception):  # noqa: N818
    """Stands for kill -9: what was in memory is gone."""


def kill() -> None:
    raise Killed


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def interrupted(folder: Path, number: int = signal.SIGTERM, at: int = 6, **options: Any) -> int:
    """Run until a signal comes in the loss of call `at`; gives the exit status."""
    with pytest.raises(SystemExit) as caught:
        trained(folder, policy=Line(at={at: send(number)}), **options)
    return caught.value.code


def killed(folder: Path, at: int, **options: Any) -> None:
    with pytest.raises(Killed):
        trained(folder, policy=Line(at={at: kill}), **options)


def equal(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def checkpoint(folder: Path) -> dict[str, Any]:
    """Everything in the last checkpoint that a run's course says."""
    last = folder / "checkpoints" / "last"
    content: dict[str, Any] = {file.name: load_file(file) for file in last.glob("*.safetensors")}
    state = torch.load(last / "state.pt", weights_only=True)
    for clock in ("train/samples_per_s", "train/data_wait"):
        state["trainer"]["scalars"].pop(clock, None)
    return content | state


def assert_equal_runs(one: Path, other: Path) -> None:
    assert equal(checkpoint(one), checkpoint(other))
    assert metrics(one) == metrics(other)
    assert (one / "checkpoints/last").readlink() == (other / "checkpoints/last").readlink()


COURSES = {
    "plain": {},
    "average of weights": {"ema": True},
    "accumulated batches": {"gradient_accumulation_steps": 2},
    "worker threads": {"num_workers": 2},
    "evaluated": {"evaluate": 3, "ema": True},
    "bfloat16": {"amp_dtype": torch.bfloat16},
}


def course(options: dict[str, Any]) -> dict[str, Any]:
    """Logs at 5 and 10, so that interruptions fall in the middle of an interval."""
    evaluator = {"evaluator": Counting()} if "evaluate" in options else {}
    return {"log": 5, **options, **evaluator}


@pytest.mark.parametrize("options", COURSES.values(), ids=COURSES)
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path, options: dict[str, Any]) -> None:
    trained(tmp_path / "whole", **course(options))
    assert interrupted(tmp_path / "cut", **course(options)) == 143
    trained(tmp_path / "cut", **course(options))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("at", [1, 4, 5, 8, 9, 12])
@pytest.mark.parametrize("options", COURSES.values(), ids=COURSES)
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, options: dict[str, Any], at: int) -> None:
    trained(tmp_path / "whole", **course(options))
    killed(tmp_path / "cut", at, **course(options))
    trained(tmp_path / "cut", **course(options))
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_run_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    trained(tmp_path / "whole", log=5, save=1)
    for _ in range(5):
        killed(tmp_path / "cut", 3, log=5, save=1)
    trained(tmp_path / "cut", log=5, save=1)
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_run_killed_while_it_saves_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(tmp_path / "whole")
    with monkeypatch.context() as patched:
        saves = iter([torch.save, lambda *_: kill()])
        patched.setattr(torch, "save", lambda *arguments: next(saves)(*arguments))
        with pytest.raises(Killed):
            trained(tmp_path / "cut")
    assert saved(tmp_path / "cut") == [4]
    trained(tmp_path / "cut")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)],
    ids=["SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2"],
)
def test_a_signal_ends_the_run_once_the_step_is_saved(tmp_path: Path, number: int, code: int) -> None:
    assert interrupted(tmp_path, number) == code
    assert saved(tmp_path) == [4, 6]
    assert status(tmp_path)["state"] == "interrupted"
    assert status(tmp_path)["step"] == 6
    assert status(tmp_path)["error"] is None


def test_a_signal_at_a_step_that_is_saved_anyway(tmp_path: Path) -> None:
    assert interrupted(tmp_path, at=8) == 143
    assert saved(tmp_path) == [4, 8]


def test_a_signal_without_checkpoints_ends_the_run(tmp_path: Path) -> None:
    assert interrupted(tmp_path, checkpoint=False) == 143
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def handler() -> Iterator[list[int]]:
    """A handler of SIGTERM as submitit sets one; gives the signals it was called with."""
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    yield called
    signal.signal(signal.SIGTERM, before)


def test_an_earlier_handler_is_called_once_the_step_is_saved(tmp_path: Path, handler: list[int]) -> None:
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append((number, saved(tmp_path))))
    trained(tmp_path, policy=Line(at={6: send(signal.SIGTERM)}))
    assert seen == [(signal.SIGTERM, [4, 6])]


@pytest.mark.parametrize("at", [5, 6, 12])
@pytest.mark.parametrize("options", COURSES.values(), ids=COURSES)
def test_where_an_earlier_handler_returns_training_goes_on(
    tmp_path: Path, handler: list[int], options: dict[str, Any], at: int
) -> None:
    trained(tmp_path / "whole", **course(options))
    trained(tmp_path / "told", policy=Line(at={at: send(signal.SIGTERM)}), **course(options))
    assert handler == [signal.SIGTERM]
    assert status(tmp_path / "told")["state"] == "finished"
    assert_equal_runs(tmp_path / "whole", tmp_path / "told")


def test_an_earlier_handler_that_returns_costs_no_evaluation(tmp_path: Path, handler: list[int]) -> None:
    trained(tmp_path / "whole", log=3, evaluate=3, evaluator=Counting())
    trained(tmp_path / "told", log=3, evaluate=3, evaluator=Counting({2: send(signal.SIGTERM)}))
    assert handler == [signal.SIGTERM]
    assert metrics(tmp_path / "told") == metrics(tmp_path / "whole")


def test_an_earlier_handler_may_raise(tmp_path: Path, handler: list[int]) -> None:
    def leave(number: int, frame: Any) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, leave)
    assert interrupted(tmp_path) == 0
    assert status(tmp_path)["state"] == "interrupted"


def test_a_signal_that_was_ignored_before_does_not_end_the_run(tmp_path: Path, handler: list[int]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    trained(tmp_path, policy=Line(at={6: send(signal.SIGTERM)}))
    assert status(tmp_path)["state"] == "finished"


def test_handlers_are_put_back(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    trained(tmp_path / "a")
    interrupted(tmp_path / "b")
    killed(tmp_path / "c", at=3)
    assert [signal.getsignal(number) for number in numbers] == before


TWICE = """
import os, signal, sys
from pathlib import Path
from fakes.training import Line, trained

def twice():
    for _ in range({times}):
        os.kill(os.getpid(), signal.SIGINT)

trained(Path(sys.argv[1]), policy=Line(at={{6: twice}}))
"""


@pytest.mark.parametrize(("times", "steps"), [(1, [4, 6]), (2, [4])])
def test_the_second_ctrl_c_stops_at_once(tmp_path: Path, times: int, steps: list[int]) -> None:
    code = TWICE.format(times=times)
    done = processes.run([sys.executable, "-c", code, tmp_path], cwd=HERE)
    assert done.returncode == 130
    assert saved(tmp_path) == steps
    assert "SIGINT: finishing this step and saving; press Ctrl-C again to stop at once" in done.stderr
    assert ("Stopped at once" in done.stderr) == (times == 2)


EVALUATED = {"log": 3, "evaluate": 3}


@pytest.mark.parametrize("call", [1, 2, 4], ids=["first", "second", "last"])
def test_an_interrupted_evaluation_is_repeated(tmp_path: Path, call: int) -> None:
    trained(tmp_path / "whole", **EVALUATED, evaluator=Counting())
    with pytest.raises(SystemExit):
        trained(tmp_path / "cut", **EVALUATED, evaluator=Counting({call: send(signal.SIGTERM)}))
    assert status(tmp_path / "cut")["state"] == "interrupted"
    assert len(metrics(tmp_path / "cut")) == call - 1
    evaluator = Counting()
    trained(tmp_path / "cut", **EVALUATED, evaluator=evaluator)
    assert evaluator.folders[0] == f"{3 * call:08d}"
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("call", [1, 2, 4], ids=["first", "second", "last"])
def test_an_evaluation_interrupted_again_is_repeated_again(tmp_path: Path, call: int) -> None:
    trained(tmp_path / "whole", **EVALUATED, evaluator=Counting())
    for number in (call, 1, 1):
        with pytest.raises(SystemExit):
            trained(tmp_path / "cut", **EVALUATED, evaluator=Counting({number: send(signal.SIGTERM)}))
        assert status(tmp_path / "cut")["state"] == "interrupted"
        assert status(tmp_path / "cut")["step"] == 3 * call
    trained(tmp_path / "cut", **EVALUATED, evaluator=Counting())
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_a_killed_evaluation_is_repeated(tmp_path: Path) -> None:
    options = {"log": 3, "evaluate": 4, "save": 4}
    trained(tmp_path / "whole", **options, evaluator=Counting())
    with pytest.raises(Killed):
        trained(tmp_path / "cut", **options, evaluator=Counting({2: kill}))
    evaluator = Counting()
    trained(tmp_path / "cut", **options, evaluator=evaluator)
    assert evaluator.folders == ["00000008", "00000012"]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_an_evaluation_that_was_written_is_not_repeated(tmp_path: Path) -> None:
    options = {"log": 3, "evaluate": 4, "save": 4}
    killed(tmp_path, at=10, **options, evaluator=Counting())
    evaluator = Counting()
    trained(tmp_path, **options, evaluator=evaluator)
    assert evaluator.folders == ["00000012"]


def test_a_finished_run_gives_its_metric_again(tmp_path: Path) -> None:
    first = trainer(tmp_path, **EVALUATED, evaluator=Counting()).train()
    evaluator, policy = Counting(), Line()
    assert trainer(tmp_path, **EVALUATED, evaluator=evaluator, policy=policy).train() == first
    assert policy.calls == evaluator.calls == 0


def test_a_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    trained(tmp_path, steps=8)
    made = trained(tmp_path, steps=12)
    assert made.update.policy.calls == 4
    assert status(tmp_path)["step"] == 12


def events(folder: Path) -> Counter[tuple[str, int]]:
    """How often TensorBoard shows each (tag, step) of a run."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return Counter((tag, event.step) for tag in accumulator.Tags()["tensors"] for event in accumulator.Tensors(tag))


def resumed(folder: Path, **options: Any) -> Any:
    """A run resumed in another second, by which TensorBoard sorts files; a new process always takes longer."""
    time.sleep(1 - time.time() % 1)
    return trained(folder, **options)


@pytest.mark.parametrize("at", [3, 6, 7, 9, 12])
def test_tensorboard_holds_each_step_once(tmp_path: Path, at: int) -> None:
    options = {**EVALUATED, "tensorboard": True, "evaluator": Counting()}
    trained(tmp_path / "whole", **options)
    killed(tmp_path / "cut", at, **options)
    resumed(tmp_path / "cut", **options)
    found = events(tmp_path / "cut")
    assert found == events(tmp_path / "whole")
    assert set(found.values()) == {1}
    assert {step for tag, step in found if tag == "train/loss"} == {3, 6, 9, 12}


def test_tensorboard_holds_each_step_once_after_a_signal(tmp_path: Path) -> None:
    options = {**EVALUATED, "tensorboard": True}
    trained(tmp_path / "whole", **options, evaluator=Counting())
    for call in (2, 1, 1):
        with pytest.raises(SystemExit):
            resumed(tmp_path / "cut", **options, evaluator=Counting({call: send(signal.SIGTERM)}))
    resumed(tmp_path / "cut", **options, evaluator=Counting())
    assert events(tmp_path / "cut") == events(tmp_path / "whole")


def test_tensorboard_holds_configuration_and_hyperparameters_once(tmp_path: Path) -> None:
    options = {**EVALUATED, "tensorboard": True, "evaluator": Counting()}
    killed(tmp_path, 7, **options)
    resumed(tmp_path, **options)
    resumed(tmp_path, **options)
    found = Counter(tag for tag, _ in events(tmp_path).elements())
    assert found["config/text_summary"] == 1
    assert found["_hparams_/session_start_info"] == 1


def test_a_line_that_a_kill_cut_short_is_written_again(tmp_path: Path) -> None:
    trained(tmp_path / "whole", log=2)
    killed(tmp_path / "cut", at=8, log=2)
    with (tmp_path / "cut/metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "train/lo')
    trained(tmp_path / "cut", log=2)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
