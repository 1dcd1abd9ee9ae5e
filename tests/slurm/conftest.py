"""A real SLURM of four nodes on this machine, for the tests of this folder."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes import processes
from fakes.datasets import write_dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
from slurm_cluster import Cluster, why_not

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of commands that use the cluster."""
    if reason := why_not():
        pytest.skip(f"needs a SLURM that can be started here: {reason}")
    with Cluster(tmp_path_factory.mktemp("slurm"), nodes=4).running() as environment:
        scripts = Path(sys.executable).parent
        path = f"{scripts}{os.pathsep}{os.environ['PATH']}"
        yield {**os.environ, **environment, "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small dataset of keypoints, ``my_keypoints``."""
    write_dataset(tmp_path / "my_keypoints", length=60, image_dtype=None, keypoints=True)
    return tmp_path


@pytest.fixture
def run(cluster: dict[str, str], folder: Path) -> Run:
    """Run a command on the cluster to its end, which is to come within so many seconds."""

    def call(command: str, status: int = 0, seconds: float = 500) -> subprocess.CompletedProcess[str]:
        done = processes.run(command, seconds=seconds, cwd=folder, env=cluster)
        assert done.returncode == status, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done

    return call
