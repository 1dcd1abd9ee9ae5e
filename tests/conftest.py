"""Fixtures every test may use."""

import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from robolearn.envs import Aloha, PushT, Xarm
from robolearn.errors import UserError

# For the tests' own commands, too: nobody looks for a network, and what is aborted says where it was.
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_ERROR_REPORTING": "false", "PYTHONFAULTHANDLER": "1"}

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded data and parity fixtures that lies beside the checkout where there is one."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared with recorded data and parity fixtures, which is not here")
    return SHARED.resolve()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``--dist loadfile`` a file's tests stay together, and those of the one SLURM do, too."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "slurm" if "tests/slurm/" in nodeid else super()._split_scope(nodeid)

    return Together(config, log) if config.getoption("dist") == "loadfile" else None


SIMULATORS = {"pusht": PushT, "aloha": Aloha, "xarm": Xarm}


@functools.cache
def why_not(name: str) -> str | None:
    """What a simulator lacks here, with the way to get it; None where it opens and renders."""
    try:
        env = SIMULATORS[name]().make_vec(1)
        env.reset(seed=[0])
        env.close()
    except UserError as error:
        return str(error)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a simulator that cannot be opened, or a GPU that is not here."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    for name in SIMULATORS:
        if item.get_closest_marker(name) and (reason := why_not(name)):
            pytest.skip(reason)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=60)
