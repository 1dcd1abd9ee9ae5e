"""What a dataset serves: against a reference reader where its recordings lie beside the checkout, else by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import processes
from fakes.datasets import TASK, read_rows, write_dataset
from safetensors.torch import load_file, save_file

from robolearn.data import LeRobotDataset
from robolearn.errors import UserError
from robolearn.types import Window

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_items.py"
CPU = torch.device("cpu")


def load(folder: Path, tmp_path: Path, **options) -> LeRobotDataset:
    return LeRobotDataset(root=str(folder), cache_dir=str(tmp_path / "cache"), **options).load(CPU)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("pusht_10_v30", "pusht_10_v30__pyav"),
        ("pusht_10_v21", "pusht_10_v21__pyav"),
        ("pusht_keypoints_v20", "pusht_keypoints_v20"),
        ("pusht_keypoints_v30", "pusht_keypoints_v30"),
    ],
)
def test_equal_to_reference(shared, tmp_path, name, truth):
    command = [sys.executable, SCRIPT, shared / "data" / name, shared / "data/truth" / f"{truth}.json"]
    done = processes.run([*command, "--cache-dir", tmp_path])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MISS" not in done.stdout


@pytest.mark.parametrize("key", ["action_is_pad", "observation.state", "index", "task", "stats"])
def test_check_items_finds_a_miss(shared, tmp_path, key):
    truth = json.loads((shared / "data/truth/pusht_keypoints_v30.json").read_text())
    tensors = load_file(shared / "data/truth/pusht_keypoints_v30.safetensors")
    if key == "task":
        truth["task"][3] = "Push"
    elif key == "stats":
        truth["stats"]["action"]["std"][1] *= 1.0001
    else:
        value = tensors[key].view(-1)
        value[7] = ~value[7] if value.dtype == torch.bool else value[7] + 1
    save_file(tensors, tmp_path / "truth.safetensors")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    command = [sys.executable, SCRIPT, shared / "data/pusht_keypoints_v30", tmp_path / "truth.json"]
    done = processes.run(command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.count("MISS") == 1
    assert f"MISS {key}" in done.stdout


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
@pytest.mark.parametrize("image_dtype", ["video", "image", None])
def test_every_version_serves_the_same(tmp_path, version, image_dtype):
    options = {"length": 9, "image_size": 32, "image_dtype": image_dtype, "keypoints": True}
    ours = load(write_dataset(tmp_path / "a", version, **options), tmp_path)
    other = load(write_dataset(tmp_path / "b", "v3.0", **options), tmp_path)
    assert ours.spec == other.spec
    indices = torch.arange(ours.num_frames)
    left, right = (d.batch(indices, Window((-1, 0), (0, 1, 2), (0,))) for d in (ours, other))
    assert left.keys() == right.keys()
    for key in left:
        if key != "observation.image" or image_dtype == "image":
            assert torch.equal(left[key], right[key]), key
    for key, stats in ours.stats.items():
        for name, value in stats.items():
            torch.testing.assert_close(value, other.stats[key][name])


def test_windows_stop_at_episodes(tmp_path):
    dataset = load(write_dataset(tmp_path / "d", length=5, image_dtype=None, keypoints=True), tmp_path)
    batch = dataset.batch(torch.tensor([0, 4, 5]), Window((-2, 0), (-1, 0, 1, 2), (0, 1)))
    columns = read_rows(tmp_path / "d/data/chunk-000/file-000.parquet")
    action = torch.tensor(columns["action"])
    assert torch.equal(batch["action"], action[torch.tensor([[0, 0, 1, 2], [3, 4, 4, 4], [5, 5, 6, 7]])])
    assert batch["action_is_pad"].tolist() == [
        [True, False, False, False],
        [False, False, True, True],
        [True] + [False] * 3,
    ]
    assert batch["observation.state_is_pad"].tolist() == [[True, False], [False, False], [True, False]]
    assert batch["next.reward"].shape == (3, 2)
    assert batch["index"].tolist() == [0, 4, 5]
    assert batch["episode_index"].tolist() == [0, 0, 1]
    assert dataset.task_of(torch.tensor([0, 16])) == [TASK, TASK]
    assert dataset.tasks == [TASK]


def test_images_of_png_are_kept_exactly(tmp_path):
    import io

    from PIL import Image

    folder = write_dataset(tmp_path / "d", episodes=2, length=4, image_size=32, image_dtype="image")
    images = read_rows(folder / "data/chunk-000/file-000.parquet")["observation.image"]
    stored = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in images])
    batch = load(folder, tmp_path).batch(torch.arange(9), Window())
    assert batch["observation.image"].dtype == torch.uint8
    assert np.array_equal(batch["observation.image"][:, 0].numpy(), stored.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_chosen_episodes(tmp_path, version):
    folder = write_dataset(tmp_path / "d", version, episodes=4, length=6, image_size=32)
    everything, some = load(folder, tmp_path), load(folder, tmp_path, episodes=[3, 1])
    assert (some.num_frames, some.num_episodes) == (16, 2)
    left = some.batch(torch.arange(16), Window((-1, 0), (0, 1)))
    right = everything.batch(left["index"], Window((-1, 0), (0, 1)))
    assert left["episode_index"].tolist() == [3] * 9 + [1] * 7
    for key in left:
        assert torch.equal(left[key], right[key]), key
    assert torch.equal(some.stats["action"]["mean"], everything.stats["action"]["mean"])


def test_several_cameras(tmp_path):
    cameras = ("observation.images.top", "observation.images.wrist")
    folder = write_dataset(tmp_path / "d", length=5, image_size=32, cameras=cameras)
    dataset = load(folder, tmp_path)
    assert list(dataset.spec.of_kind("VISUAL")) == list(cameras)
    batch = dataset.batch(torch.tensor([3]), Window())
    assert not torch.equal(batch[cameras[0]], batch[cameras[1]])


def test_imagenet_statistics(tmp_path):
    folder = write_dataset(tmp_path / "d", length=5, image_size=32)
    own = LeRobotDataset(root=str(folder), use_imagenet_stats=False).stats["observation.image"]
    imagenet = LeRobotDataset(root=str(folder)).stats["observation.image"]
    assert own["mean"].shape == (3, 1, 1)
    torch.testing.assert_close(imagenet["mean"].flatten(), torch.tensor([0.485, 0.456, 0.406]))
    assert not torch.equal(own["std"], imagenet["std"])
    assert torch.equal(own["max"], imagenet["max"])


def test_valid_indices(tmp_path):
    dataset = LeRobotDataset(root=str(write_dataset(tmp_path / "d", length=3, image_dtype=None)))
    assert dataset.valid_indices(0).tolist() == list(range(12))
    assert dataset.valid_indices(2).tolist() == [0, 3, 4, 7, 8, 9]
    assert dataset.valid_indices(4).tolist() == [7]
    with pytest.raises(UserError, match="the longest has 5"):
        dataset.valid_indices(5)


def test_constructor_is_quick_and_decodes_nothing(tmp_path, monkeypatch):
    folder = write_dataset(tmp_path / "d", length=5, image_size=32)
    monkeypatch.setattr("av.open", None)
    dataset = LeRobotDataset(root=str(folder))
    assert dataset.spec.observation["observation.image"].shape == (3, 32, 32)
    with pytest.raises(RuntimeError, match="load"):
        dataset.batch(torch.tensor([0]), Window())
