"""Output that nobody reads any more: what prints goes on, and a command that only prints says that it could not."""

import errno
import io
import sys
from pathlib import Path

import pytest
from fakes import processes

from robolearn.cli.dataset import main as dataset
from robolearn.errors import UserError
from robolearn.system.streams import TolerantStream, check_printed, tolerant_streams


class Broken(io.StringIO):
    """Fails once it was written `after` times."""

    def __init__(self, number: int, after: int = 0) -> None:
        super().__init__()
        self.number, self.after = number, after

    def write(self, text: str) -> int:
        self.after -= 1
        if self.after < 0:
            raise OSError(self.number, "it broke")
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
def test_a_stream_that_breaks_falls_silent(number: int) -> None:
    under = Broken(number, after=1)
    stream = TolerantStream(under)
    for _ in range(3):
        print("a line", file=stream, end="")
    stream.flush()
    assert under.getvalue() == "a line"


def test_a_stream_that_was_closed_falls_silent() -> None:
    under = io.StringIO()
    under.close()
    print("a line", file=TolerantStream(under), flush=True)


@pytest.mark.parametrize(("number", "told"), [(errno.EPIPE, False), (errno.ENOSPC, True)])
def test_only_a_reader_that_left_has_seen_enough(number: int, told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(number))
    with tolerant_streams():
        print("the only result")
        if not told:
            check_printed()
            return
        with pytest.raises(UserError):
            check_printed()


def test_a_command_whose_output_is_lost_fails_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("robolearn.cli.dataset._info", lambda arguments: print("all of it") or 0)
    monkeypatch.setattr(sys, "stdout", Broken(errno.ENOSPC))
    with pytest.raises(SystemExit) as ended:
        dataset(["info", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


CLOSED = """
import os, sys
import robolearn.cli
file = open("data", "w")
assert file.fileno() > 2, file.fileno()
os.write(2, b"what a library prints")
print("out"), print("err", file=sys.stderr), sys.stdin.read()
"""


def test_no_file_takes_the_place_of_a_stream_that_was_closed(tmp_path: Path) -> None:
    command = f"exec '{sys.executable}' -c '{CLOSED}' <&- >&- 2>&-"
    assert processes.run(command, cwd=tmp_path).returncode == 0
    assert (tmp_path / "data").read_text() == ""
