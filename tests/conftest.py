"""Fixtures every test may use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded data and parity fixtures that lies beside the checkout where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with recorded data and parity fixtures, which is not here")
    return SHARED.resolve()
