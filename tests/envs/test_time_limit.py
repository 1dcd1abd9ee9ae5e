"""Simulators that do not return: a limit of time ends the wait, a signal ends it sooner, and nothing is left."""

import multiprocessing
import time
from collections.abc import Callable

import numpy as np
import pytest
from fakes.fake_env import Forward, Reacher, reach_env

from robolearn.collecting.demonstration_workers import DemonstrationTask
from robolearn.data.lerobot_format.recorder import Recorder
from robolearn.envs.time_limit import CallThread, TimeLimit, any_stuck
from robolearn.episodes import RolloutInterrupted
from robolearn.errors import UserError
from robolearn.rollouts.evaluation import Evaluator
from robolearn.rollouts.rollout import rollout

SHORT = TimeLimit(0.5)
HANGS = {"hang": "step 4", "hang in C": "step 4", "hang in reset": "reset"}


def episode(crash_in: str, use_async: bool, limit: TimeLimit, stop: Callable[[], bool] = lambda: False) -> None:
    env = reach_env(crash_in=crash_in).make_vec(1, use_async, limit, stop)
    try:
        rollout(env, Forward(), [7])
    finally:
        env.close()


@pytest.mark.parametrize("crash_in", HANGS)
def test_what_hangs_is_named_with_seed_and_step(crash_in: str) -> None:
    with pytest.raises(UserError) as told:
        episode(crash_in, False, SHORT)
    assert told.value.key == "eval.timeout"
    for word in ("fake_env/Reach-v0", f"from {HANGS[crash_in]} of the episode with seed 7"):
        assert word in str(told.value)
    assert any_stuck()


def test_what_hangs_in_a_process_is_named_and_ended() -> None:
    with pytest.raises(UserError) as told:
        episode("hang in C", True, TimeLimit(8.0))  # a slow machine opens it meanwhile
    assert told.value.key == "eval.timeout"
    assert "from step 4 of the episode with seed 7" in str(told.value)
    assert not multiprocessing.active_children()


def test_a_simulator_can_not_end_the_process_that_trains() -> None:
    with pytest.raises(UserError) as told:
        episode("die", False, TimeLimit())
    assert told.value.key == "env"
    assert "step 4 of the episode with seed 7" in str(told.value)


@pytest.mark.parametrize("crash_in", ["hang", "hang in C"])
def test_a_signal_does_not_wait_for_what_hangs(crash_in: str) -> None:
    start = time.monotonic()
    with pytest.raises(RolloutInterrupted):
        episode(crash_in, False, TimeLimit(), stop=lambda: time.monotonic() > start + 0.5)
    assert time.monotonic() - start < 8


def test_a_demonstration_that_hangs_is_named() -> None:
    factory = reach_env(crash_in="hang")
    task = DemonstrationTask(
        factory.env_fn(), Reacher, Recorder(factory.spec, "reach"), limit=TimeLimit(0.5, "timeout")
    )
    with pytest.raises(UserError) as told, task.open(lambda: False) as attempt:
        attempt(3)
    assert told.value.key == "timeout"
    assert "step 4 of the episode with seed 3" in str(told.value)


def test_an_evaluation_takes_its_limit_from_its_option(tmp_path) -> None:
    evaluator = Evaluator(reach_env(crash_in="hang"), n_episodes=1, batch_size=1, n_videos=0, timeout=0.5)
    with pytest.raises(UserError) as told:
        evaluator(Forward(), tmp_path)
    assert told.value.key == "eval.timeout"


def test_calls_give_what_they_give() -> None:
    call = CallThread("x", SHORT)
    assert call(lambda: 3, lambda: "a call") == 3
    with pytest.raises(SystemExit):
        call(lambda: exec("raise SystemExit(4)"), lambda: "a call")
    assert call(lambda: np.arange(2).sum(), lambda: "a call") == 1
    call.close()


def test_an_exception_in_the_waiting_thread_leaves_a_call_that_returns_in_order(monkeypatch) -> None:
    def interrupted(self: object, doing: object) -> None:
        raise KeyboardInterrupt

    call = CallThread("x", TimeLimit())
    with monkeypatch.context() as patched:
        patched.setattr(CallThread, "_wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(lambda: time.sleep(0.2), lambda: "a call")
    assert not call.is_stuck
    assert call(lambda: 5, lambda: "a call") == 5
    call.close()
