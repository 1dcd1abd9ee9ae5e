"""LeRobot's folders from the command line: fine-tune two steps, evaluate, export, and start from our own."""

import json
import sys
from pathlib import Path

import pytest
from fakes import lerobot, processes
from fakes.cli import ROOT, metrics, run
from fakes.datasets import write_dataset

pytestmark = pytest.mark.pusht

_SHORT = "env.episode_length=5 eval.n_episodes=1 eval.batch_size=1 eval.n_videos=0 device=cpu"
SHORT = ["env=pusht", *_SHORT.split()]
TRAIN = ["offline.steps=2", "eval_freq=2", "log_freq=1", "batch_size=2", "num_workers=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The keys that choose a dataset of two short episodes, with a cache of its own."""
    folder = tmp_path_factory.mktemp("dataset")
    return [f"dataset.root={write_dataset(folder / 'pusht', episodes=2)}", f"dataset.cache_dir={folder / 'cache'}"]


KINDS = ["diffusion", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("act", "tdmpc", "vqbet"))]


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tune_evaluate_and_export(data: list[str], tmp_path: Path, kind: str) -> None:
    published = lerobot.write(tmp_path / "published", lerobot.config(kind), later=kind == "vqbet")
    folder, path = tmp_path / "run", f"policy.path={published}"
    steps = {"tdmpc": ["policy.n_action_repeats=1"]}.get(kind, ["policy.n_action_steps=2"])
    run("train", path, *data, *SHORT, *TRAIN, f"output_dir={folder}", *steps)
    assert [line["step"] for line in metrics(folder)] == [1, 2]
    out = run("evaluate", f"checkpoint={published}", *SHORT, *steps, f"output_dir={tmp_path / 'eval'}")
    assert "success_rate" in out
    assert json.loads((tmp_path / "eval/eval.json").read_text())["n_episodes"] == 1
    script = [sys.executable, str(ROOT / "scripts/export_lerobot.py"), str(folder), str(tmp_path / "out")]
    exported = processes.run(script)
    assert exported.returncode == 0, exported.stderr
    # The export acts as the checkpoint it was made of, and a run of ours starts where another ended.
    figures = []
    for checkpoint in (folder, tmp_path / "out"):
        where = tmp_path / f"eval_{checkpoint.name}"
        run("evaluate", f"checkpoint={checkpoint}", *SHORT, "seed=1000", f"output_dir={where}")
        figures.append(json.loads((where / "eval.json").read_text())["episodes"][0]["sum_reward"])
    assert figures[0] == figures[1]
    run("train", f"policy.path={folder}", *data, *TRAIN, "env=none", "device=cpu", f"output_dir={tmp_path / 'again'}")


def test_evaluating_what_does_not_fit_is_told(tmp_path: Path) -> None:
    config = lerobot.config("diffusion", n_obs_steps=2)
    state = lerobot.state(config)
    published = lerobot.write(tmp_path / "published", config, state)
    path = f"checkpoint={published}"
    assert "env: this checkpoint's run had no simulator" in run("evaluate", path, status=2)
    out = run("evaluate", path, *SHORT, "env.observation_width=64", "env.observation_height=64", status=2)
    assert "observation.image has shape (3, 96, 96)" in out
    assert "did you mean 'policy.horizon'?" in run("evaluate", path, *SHORT, "policy.horizn=3", status=2)
    assert "do not fit: unet." in run("evaluate", path, *SHORT, "policy.kernel_size=3", status=2)
    assert "the checkpoint decides the policy" in run("evaluate", path, *SHORT, "policy=act", status=2)
