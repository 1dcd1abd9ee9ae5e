"""Every command of README.md and docs/ that needs neither a network nor a GPU runs as it stands, only smaller."""

import os
import re
import sys
from pathlib import Path

import processes
import pytest
from fakes import lerobot
from fakes.datasets import write_dataset

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?```bash\n(.*?)```", re.DOTALL)

# A network and episodes so small that a command takes seconds; what a command says itself is not touched.
SMALL = {
    "policy.down_dims": "[8,16]",
    "policy.crop_shape": "[64,64]",
    "policy.spatial_softmax_num_keypoints": "4",
    "policy.num_inference_steps": "2",
    "offline.steps": "2",
    "batch_size": "4",
}
SMALL_EVALUATION = {"env.episode_length": "3", "eval.n_episodes": "1", "eval.batch_size": "1", "eval.n_videos": "1"}


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks that are to be run."""
    blocks = [block for skipped, block in BLOCK.findall(page.read_text()) if not skipped]
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def smaller(command: str) -> str:
    if command.startswith("robolearn-collect"):
        return re.sub(r"episodes=\d+", "episodes=2", command)
    if not command.startswith("robolearn-train") or "--help" in command or "--cfg" in command:
        return command
    options = SMALL if "env=none" in command else SMALL | SMALL_EVALUATION
    if "dataset=pusht_keypoints" in command:
        options = {key: value for key, value in options.items() if "crop" not in key}
    if "policy.path=" in command:  # whose sizes are the checkpoint's
        options = {key: value for key, value in options.items() if not key.startswith("policy.")}
    return " ".join([command, *(f"{k}={v}" for k, v in options.items() if f" {k}=" not in command)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all pages' commands run, one after the other, as a reader's would."""
    folder = tmp_path_factory.mktemp("docs")
    write_dataset(folder / "my_dataset", length=30)
    write_dataset(folder / "my_other_dataset", length=30, seed=1)
    lerobot.write(folder / "diffusion_pusht", lerobot.config("diffusion"))
    write_dataset(folder / "my_keypoints", length=60, image_dtype=None, keypoints=True)
    return folder


def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) > 10


@pytest.mark.slow
@pytest.mark.pusht
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of(page: Path, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands(page):
        done = processes.run(smaller(command), cwd=folder, env=os.environ | {"PATH": path})
        assert done.returncode == 0, f"{command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
