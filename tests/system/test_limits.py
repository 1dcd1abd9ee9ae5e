"""What the machine refuses becomes a sentence; what is a fault of the code stays what it is."""

import errno
import logging
import logging.config
import os
import resource
from pathlib import Path

import pytest
from fakes.training import Line, status, trained

from robolearn.cli.entry import entry_point
from robolearn.errors import UserError
from robolearn.system.limits import check_address_space, limits_as_user_errors


def _oserror(number: int, file: str | None = "some/file") -> OSError:
    return OSError(number, os.strerror(number), file)


REFUSED = {
    "read only": (_oserror(errno.EROFS), "some/file"),
    "forbidden": (_oserror(errno.EACCES), "some/file"),
    "full": (_oserror(errno.ENOSPC), "some/file"),
    "quota": (_oserror(errno.EDQUOT, None), "the/folder"),
    "size": (_oserror(errno.EFBIG), "some/file"),
    "open files": (_oserror(errno.EMFILE), "ulimit -n"),
    "in the way": (_oserror(errno.ENOTDIR), "some/file"),
    "hardware": (_oserror(errno.EIO), "some/file"),
    "memory": (MemoryError(), "memory"),
    "memory of the system": (_oserror(errno.ENOMEM), "memory"),
    "memory of torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "memory"),
    "memory of a library": (ImportError("libx.so: failed to map segment from shared object"), "memory"),
    "threads": (RuntimeError("can't start new thread"), "ulimit -u"),
    "processes": (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "ulimit -u"),
    "temporary files": (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/x']"), "TMPDIR"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_what_it_is_about(name: str) -> None:
    error, key = REFUSED[name]
    with pytest.raises(UserError) as told, limits_as_user_errors(Path("the/folder")):
        raise error
    assert told.value.key == key
    assert "\n" not in str(told.value)


def test_a_log_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.log").mkdir()
    handler = {"class": "logging.FileHandler", "filename": str(tmp_path / "train.log")}
    with pytest.raises(UserError) as told, limits_as_user_errors():
        logging.config.dictConfig({"version": 1, "handlers": {"file": handler}})
    assert told.value.key == str(tmp_path / "train.log")


@pytest.mark.parametrize("error", [RuntimeError("sizes do not match"), FileNotFoundError(2, "no", "x"), KeyError("a")])
def test_a_fault_of_the_code_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)) as told, limits_as_user_errors():
        raise error
    assert told.value is error


@pytest.mark.parametrize(("limit", "refused"), [(10**9, True), (10**11, False), (resource.RLIM_INFINITY, False)])
def test_a_limit_in_which_torch_can_not_be_loaded_is_refused(
    limit: int, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    if not refused:
        check_address_space()
        return
    with pytest.raises(UserError) as told:
        check_address_space()
    assert told.value.key == "ulimit -v"


def test_a_command_ends_with_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    @entry_point
    def main(argv: object = None) -> None:
        raise _oserror(errno.EMFILE)

    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_fails_with_the_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refused() -> None:
        raise _oserror(errno.EROFS)

    with caplog.at_level(logging.INFO), pytest.raises(UserError):
        trained(tmp_path, policy=Line(at={2: refused}))
    assert status(tmp_path)["state"] == "failed"
    assert "some/file" in status(tmp_path)["error"]
    assert "Traceback" not in caplog.text
