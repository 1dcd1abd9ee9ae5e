"""Worker processes: what they answer, how they fail, and that nothing is left of them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import processes

from robolearn.errors import UserError
from robolearn.system.workers import TERMINATION_SIGNALS, Worker, wait_any

TESTS = Path(__file__).resolve().parents[1]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes by /proc")


@dataclass(frozen=True)
class Commands:
    """Does what it is asked by name; `closed`, a file, says that it was left."""

    closed: Path | None = None
    broken: bool = False

    @contextmanager
    def open(self, stop: Callable[[], bool]) -> Iterator[Callable[[str], object]]:
        if self.broken:
            raise UserError("It can't be opened.", key="env.task")

        def answer(command: str) -> object:
            if command == "pid":
                return os.getpid()
            if command == "exit":
                os._exit(7)
            if command == "user error":
                raise UserError("It is wrong", key="env.task", fix="choose another")
            if command == "error":
                raise ZeroDivisionError("no\nway")
            if command == "hang":
                time.sleep(600)
            while command == "wait" and not stop():
                time.sleep(0.01)
            return command

        try:
            yield answer
        finally:
            if self.closed:
                self.closed.touch()


def worker(task: Commands, preload: list[str] | None = None) -> Worker[str, object]:
    return Worker(task, "test", "workers", "set workers=1", preload)


def ask(one: Worker[str, object], command: str) -> object:
    one.send(command)
    return one.receive()


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def one() -> Iterator[Worker[str, object]]:
    found = worker(Commands(), preload=[])
    yield found
    found.close(timeout=0)


def test_requests_are_answered_in_another_process(one: Worker[str, object]) -> None:
    assert not one.poll(0)
    assert ask(one, "pid") != os.getpid()
    assert ask(one, "hello") == "hello"


def test_a_user_error_keeps_its_key_and_its_fix(one: Worker[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        ask(one, "user error")
    assert (caught.value.key, caught.value.fix) == ("env.task", "choose another")
    assert str(caught.value) == "It is wrong; choose another."
    assert ask(one, "hello") == "hello"


def test_another_error_carries_its_traceback(one: Worker[str, object]) -> None:
    with pytest.raises(RuntimeError, match=r'(?s)File ".*", line \d+, in answer.*ZeroDivisionError: no\nway'):
        ask(one, "error")
    assert ask(one, "hello") == "hello"


def test_a_task_that_cannot_be_opened_says_so() -> None:
    broken = worker(Commands(broken=True), preload=[])
    with pytest.raises(UserError) as caught:
        ask(broken, "hello")
    assert caught.value.key == "env.task"
    broken.close(timeout=0)


@linux
def test_termination_signals_are_ignored(one: Worker[str, object]) -> None:
    pid = ask(one, "pid")
    assert isinstance(pid, int)
    for number in TERMINATION_SIGNALS:
        os.kill(pid, number)
    assert ask(one, "pid") == pid


def test_a_death_is_a_user_error_with_the_exit_code() -> None:
    dying = worker(Commands(), preload=[])
    for _ in range(2):
        with pytest.raises(UserError, match="exit code 7") as caught:
            ask(dying, "exit")
        assert (caught.value.key, caught.value.fix) == ("workers", "set workers=1")
    dying.close()


def test_the_first_to_answer_is_found(one: Worker[str, object]) -> None:
    waiting = worker(Commands(), preload=[])
    waiting.send("wait")
    one.send("hello")
    assert wait_any([waiting, one], 60) == [one]
    assert one.receive() == "hello"
    assert wait_any([waiting, one], 0) == []
    waiting.close(timeout=0)


@linux
@pytest.mark.parametrize("preload", [None, []])
def test_closing_stops_a_request_and_leaves_the_task(tmp_path: Path, preload: list[str] | None) -> None:
    closing = worker(Commands(closed=tmp_path / "closed"), preload)
    pid = ask(closing, "pid")
    assert isinstance(pid, int)
    closing.send("wait")
    closing.close(timeout=60)
    assert ended(pid)
    assert (tmp_path / "closed").exists()


@linux
def test_a_worker_that_does_not_stop_is_killed() -> None:
    stuck = worker(Commands(), preload=[])
    pid = ask(stuck, "pid")
    assert isinstance(pid, int)
    stuck.send("hang")
    stuck.close(timeout=0.2)
    assert ended(pid)


PARENT = """
import sys
from test_workers import Commands, ask, worker
if __name__ == "__main__":
    workers = [worker(Commands(), preload) for preload in (None, [])]
    print(*[ask(each, "pid") for each in workers], flush=True)
    for each in workers:
        each.send("hang")
    sys.stdin.read()
"""


@linux
def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    paths = os.pathsep.join([str(TESTS), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": paths}}
    with processes.started([sys.executable, str(script)], **options) as process:
        assert process.stdout
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        assert not any(map(ended, pids))
        process.kill()
        process.wait(60)
        wait_for(lambda: all(map(ended, pids)))


def test_workers_need_no_torch() -> None:
    code = "import sys, robolearn.system.workers; sys.exit('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code]).returncode == 0
