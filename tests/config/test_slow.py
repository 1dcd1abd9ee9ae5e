"""What takes minutes: the wheel outside the repository, and a sweep through submitit."""

import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import yaml
from toys import FILES, SMALL

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, without this checkout's own path."""
    env = {**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **environment}
    return processes.run(command, env=env)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that holds the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    done = run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    assert done.returncode == 0, done.stderr
    # The dependencies of this environment, but not its editable robolearn: .pth files are not followed here.
    here = next(path for path in sys.path if path.endswith("site-packages"))
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(f"{here}\n")
    return python.parent


def test_wheel_outside_the_repository(installed: Path, own: Callable[[dict[str, str]], list[str]]) -> None:
    where = run(installed / "python", "-c", "from robolearn.config import conf_dir; print(conf_dir())").stdout
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
