"""Fixtures every test may use."""

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from robolearn.envs import PushT
from robolearn.errors import UserError

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded data and parity fixtures that lies beside the checkout where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with recorded data and parity fixtures, which is not here")
    return SHARED.resolve()


@functools.cache
def why_not_pusht() -> str | None:
    """What the simulator lacks here, with the way to get it; None where it opens."""
    try:
        _ = PushT().spec
    except UserError as error:
        return str(error)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a simulator that cannot be opened."""
    if item.get_closest_marker("pusht") and why_not_pusht():
        pytest.skip(why_not_pusht() or "")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
