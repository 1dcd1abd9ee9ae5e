"""The wheel, alone and in an environment outside the repository, and a sweep through submitit."""

import os
import signal
import subprocess
import sys
import time
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fakes import processes
from fakes.line_env import FILES, SMALL

from robolearn.runs.run import status

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parent


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without this checkout's own path."""
    env = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **environment}
    return processes.run(command, env=env)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The ``bin`` folder of an environment that holds the wheel, and the dependencies of this one."""
    folder = wheel.parent
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    done = run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    # The dependencies of this environment, but not its editable robolearn: .pth files are not followed here.
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{here}\n")
    return python.parent


def test_the_wheel_holds_every_file(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    conf = {f"robolearn/{file.relative_to(ROOT)}" for file in (ROOT / "conf").rglob("*.yaml")}
    source = {str(file.relative_to(ROOT / "src")) for file in (ROOT / "src").rglob("*.py")}
    assert conf | source <= packed


@pytest.mark.long
def test_wheel_outside_the_repository(installed: Path, own: Callable[[dict[str, str]], list[str]]) -> None:
    where = run(installed / "python", "-c", "from robolearn.system.paths import conf_dir; print(conf_dir())").stdout
    assert where.strip().startswith(str(installed.parent.resolve()))
    done = run(installed / "robolearn-train", "--cfg", "job", "--resolve", "+experiment=diffusion_pusht")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["batch_size"] == 64
    done = run(installed / "robolearn-train", "polcy=diffusion")
    assert (done.returncode, done.stderr) == (
        2,
        "polcy: conf/train.yaml has no key 'polcy' (did you mean 'policy'?).\n",
    )
    argv = [*own(FILES), *SMALL, "output_dir=run"]
    done = run(installed / "robolearn-train", *argv, PYTHONPATH=str(HERE))
    assert done.returncode == 0, done.stderr
    done = run(installed / "robolearn-eval", *argv[:2], "checkpoint=run", PYTHONPATH=str(HERE))
    assert "success_rate" in done.stdout, done.stderr


def test_sweep_through_submitit(own: Callable[[dict[str, str]], list[str]]) -> None:
    command = [sys.executable, "-c", "from robolearn.cli.train import main; main()", "-m", *own(FILES), *SMALL]
    done = run(*command, "hydra/launcher=local", "seed=1,2", "hydra.sweep.dir=sweep", PYTHONPATH=str(HERE))
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        (file,) = Path("sweep").glob(f"seed-{seed}_*/config.yaml")
        config = yaml.safe_load(file.read_text())
        assert (config["seed"], config["job_name"]) == (seed, "line_linear")


def test_an_interrupted_sweep_leaves_no_run_at_work(own: Callable[[dict[str, str]], list[str]]) -> None:
    command = [sys.executable, "-m", "robolearn.cli.train", "-m", *own(FILES), *SMALL, "offline.steps=1000000"]
    command += ["hydra/launcher=local", "seed=1,2", "hydra.sweep.dir=sweep", "eval_freq=1000000"]
    paths = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    with (
        Path("told").open("w") as told,
        processes.started(command, stdout=told, stderr=told, env=os.environ | paths) as sweep,
    ):
        wait(lambda: any(Path("sweep").glob("*/metrics.jsonl")))
        sweep.send_signal(signal.SIGINT)
        assert sweep.wait(60) == 130
        (run,) = Path("sweep").glob("seed-1_*")
        pid = (status(run) or {})["pid"]
        wait(lambda: not Path(f"/proc/{pid}").exists())
    text = Path("told").read_text()
    assert "its runs were cancelled. The same command with hydra.sweep.dir=sweep resumes the sweep" in text
    assert "launchers.py" not in text


def wait(test: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not test():
        assert time.monotonic() < end
        time.sleep(0.2)
