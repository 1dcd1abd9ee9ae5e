"""Fixtures every test may use."""

import functools
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
