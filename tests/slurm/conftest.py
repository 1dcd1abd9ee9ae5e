"""A real SLURM of four nodes on this machine, for the tests of this folder."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
from slurm_cluster import Cluster, why_not
from synthetic import write_dataset

Run = Callable[..., subprocess.CompletedProcess[str]]


def bounded(command: str, seconds: float, cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a shell's command; what takes longer is ended with all that it started, and its status is not 0 then."""
    # Files, not pipes: a process that was left behind would keep whoever reads those waiting.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        files = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        process = subprocess.Popen(command, shell=True, cwd=cwd, env=env, process_group=0, **files)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess(command, process.wait(), out.read(), err.read())


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
        done = bounded(command, seconds, folder, cluster)
        assert done.returncode == status, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        return done

    return call
