"""Several processes that train one model: the same losses as one, and one end for all of them."""

import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import processes
from fakes.cli import metrics, run
from fakes.datasets import write_dataset
from fakes.world import MADE, together
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

_KEYS = """
policy=diffusion policy.down_dims=[8,16] policy.diffusion_step_embed_dim=8 scheduler.num_warmup_steps=0 device=cpu
num_workers=0 seed=3 dataset=pusht_keypoints env=none batch_size=8 log_freq=1 save_freq=4 offline.steps=6
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("dataset") / "keypoints"
    write_dataset(root, episodes=3, length=60, image_dtype=None, keypoints=True)
    return [*_KEYS.split(), f"dataset.root={root}"]


@pytest.fixture(scope="module")
def pair(keys: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("pair")
    ended = together(2, folder, "train", "raises", "-1", *keys, f"output_dir={folder / 'run'}")
    assert [status for status, _ in ended] == [0, 0], ended
    return folder / "run"


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "status.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/last/model.safetensors")


def test_every_policy_learns_from_shares_what_it_learns_from_the_whole_batch(tmp_path: Path) -> None:
    for code, told in together(2, tmp_path, "compare"):
        assert code == 0, told
        assert told.count("tensors agree") == len(MADE)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_one_process_and_several_learn_the_same(keys: list[str], tmp_path: Path, size: int) -> None:
    one, several = tmp_path / "one", tmp_path / "several"
    run("train", *keys, f"output_dir={one}")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={size}",
        "-m",
        "robolearn.cli.train",
        *keys,
    ]
    done = processes.run([*command, f"output_dir={several}"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert len(metrics(several)) == 6
    for alone, shared in zip(metrics(one), metrics(several), strict=True):
        assert shared["train/loss"] == pytest.approx(alone["train/loss"], rel=1e-5)
        assert shared["train/grad_norm"] == pytest.approx(alone["train/grad_norm"], rel=1e-4)
    found = weights(several)
    for name, value in weights(one).items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.long
def test_a_signal_to_one_process_ends_all_at_one_step_and_they_resume(
    pair: Path, keys: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ["train", "is_told_to_end", "1", *keys, f"output_dir={folder}"]
    assert [code for code, _ in together(2, tmp_path, *command)] == [143, 143]
    assert (status(folder)["state"], status(folder)["step"]) == ("interrupted", 3)
    assert [code for code, _ in together(2, tmp_path, *command)] == [0, 0]
    assert status(folder)["first_step"] == 3
    undisturbed = weights(pair)
    assert all(torch.equal(value, undisturbed[name]) for name, value in weights(folder).items())
    losses = [[line["train/loss"] for line in metrics(one)] for one in (folder, pair)]
    assert losses[0] == losses[1]


@pytest.mark.long
def test_a_run_of_two_resumes_in_one(pair: Path, keys: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(pair, folder, symlinks=True)
    for newer in (folder / "checkpoints").glob("*6"):
        shutil.rmtree(newer)
    (folder / "checkpoints/last").unlink()
    (folder / "status.json").unlink()
    run("train", *keys, f"output_dir={folder}")
    assert status(folder)["first_step"] == 4
    for alone, shared in zip(metrics(folder), metrics(pair), strict=True):
        assert alone["train/loss"] == pytest.approx(shared["train/loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("event", "told"),
    [
        ("raises", "process 1 on .* failed: ValueError: a broken frame"),
        pytest.param("dies", "another of the 2 processes", marks=pytest.mark.long),
    ],
)
def test_a_process_that_ends_ends_the_run_with_its_error(
    event: str, told: str, keys: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    (first, words), (second, _) = together(2, tmp_path, "train", event, "3", *keys, f"output_dir={folder}")
    assert first == 1, words
    assert second != 0
    assert status(folder)["state"] == "failed"
    assert re.search(told, status(folder)["error"])
    assert "Traceback" not in words.splitlines()[-1]
