"""Signals that end a process: what is open is closed, whoever handles them already keeps doing so."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.training import CONFIG, status

from robolearn.errors import UserError
from robolearn.runs.run import Run
from robolearn.system.termination import TERMINATION_SIGNALS, OrderlyExit, exit_on_termination
from robolearn.training.signals import GracefulShutdown

KILLING = [number for number in TERMINATION_SIGNALS if number != signal.SIGINT]


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in TERMINATION_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", KILLING)
def test_a_run_that_is_being_built_is_interrupted_by_a_signal(tmp_path: Path, number: int) -> None:
    with pytest.raises(SystemExit) as left, Run(tmp_path, CONFIG, []).running():
        os.kill(os.getpid(), number)
    assert left.value.code == 128 + number
    assert status(tmp_path)["state"] == "interrupted"
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_at_the_end_waits_until_the_end_is_written() -> None:
    done = []

    def end() -> None:
        with exit_on_termination() as termination:
            termination.defer()
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("written")

    with pytest.raises(SystemExit) as left:
        end()
    assert (left.value.code, done) == (143, ["written"])


@pytest.mark.parametrize("context", [exit_on_termination, GracefulShutdown])
def test_an_ignored_signal_stays_ignored(context) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with context():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_handler_of_others_stays() -> None:
    got: list[int] = []
    signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    with exit_on_termination():
        os.kill(os.getpid(), signal.SIGUSR2)
    assert got == [signal.SIGUSR2]


@pytest.mark.parametrize("code", [0, None])
def test_a_run_left_by_some_part_of_it_is_no_success(tmp_path: Path, code: int | None) -> None:
    with pytest.raises(UserError), Run(tmp_path, CONFIG, []).running():
        raise SystemExit(code)
    assert status(tmp_path)["state"] == "failed"


def test_one_that_a_signals_handler_left_is(tmp_path: Path) -> None:
    with pytest.raises(SystemExit), Run(tmp_path, CONFIG, []).running():
        raise OrderlyExit(0)
    assert status(tmp_path)["state"] == "interrupted"


def test_leaving_at_once_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, CONFIG, [])
    run.leave()
    assert not (tmp_path / "status.json").exists()
    with run.running():
        run.leave()
        assert status(tmp_path)["state"] == "interrupted"
