"""What `make train` runs without a dataset, in a short form."""

import os
import sys
from pathlib import Path

import pytest
from fakes import processes

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.xarm
def test_collects_trains_and_compares(tmp_path: Path) -> None:
    short = ["offline.steps=2", "eval.n_episodes=2", "eval.batch_size=2", "eval.n_videos=1", "seed=1"]
    done = processes.run(
        [ROOT / "scripts/train.sh", "", *short],
        cwd=tmp_path,
        env={**os.environ, "BIN": str(Path(sys.executable).parent), "PYTHONPATH": str(ROOT / "src")},
        seconds=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "200 episodes" in done.stdout
    assert "2 episodes that start alike" in done.stdout
    (run,) = tmp_path.glob("outputs/make_train_*/trained")
    assert (run / "checkpoints/last").exists()
    assert list(run.glob("eval/00000002/*.mp4"))
    assert str(run.relative_to(tmp_path)) in done.stdout
