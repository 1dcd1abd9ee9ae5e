"""What all sources of frames have in common: LeRobot datasets, several of them, the replay buffer, a user's own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.datasets import write_dataset
from fakes.line_env import LineDataset

from robolearn.data import BatchSampler, LeRobotDataset, MultiDataset
from robolearn.data.protocols import FrameDataset, FrameSource
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.episodes import Episode
from robolearn.types import Spec, Window

CPU = torch.device("cpu")
LENGTHS = (4, 5)
WINDOW = Window(observation=(-2, 0), action=(0, 1, 2))


def lerobot(folder: Path) -> LeRobotDataset:
    root = write_dataset(folder / "one", episodes=2, length=LENGTHS[0], image_size=32)
    return LeRobotDataset(root=str(root), cache_dir=str(folder)).load(CPU)


def multi(folder: Path) -> MultiDataset:
    roots = [write_dataset(folder / str(n), episodes=1, length=n, image_size=32, seed=n) for n in LENGTHS]
    return MultiDataset([str(root) for root in roots], cache_dir=str(folder)).load(CPU)


def replay(folder: Path) -> ReplayBuffer:
    spec = lerobot(folder).spec
    buffer = ReplayBuffer(folder / "replay", spec, 100, CPU)
    for steps in LENGTHS:
        random = np.random.default_rng(steps)
        observations = {
            key: (255 * random.random((steps + 1, *each.shape))).astype("u1" if each.kind == "VISUAL" else "f4")
            for key, each in spec.observation.items()
        }
        actions = random.random((steps, *spec.action.shape), "f4")
        buffer.add(Episode(steps, actions, random.random(steps), None, False, True, observations))
    return buffer


SOURCES = {"lerobot": lerobot, "multi": multi, "replay": replay}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[FrameSource, Spec, int]:
    """A source of two episodes, its spec and the index of the second one's first frame."""
    found = SOURCES[request.param](tmp_path)
    return found, found.spec, LENGTHS[0] + (request.param == "replay")


def test_windows_have_the_shapes_and_types_of_the_spec(source) -> None:
    frames, spec, second = source
    batch = frames.batch(torch.tensor([1, 0, second]), WINDOW)
    for key, feature in (spec.observation | {"action": spec.action}).items():
        steps = 3 if key == "action" else 2
        assert batch[key].shape == (3, steps, *feature.shape)
        assert batch[key].dtype == (torch.uint8 if feature.kind == "VISUAL" else torch.float32)
        assert batch[f"{key}_is_pad"].shape == (3, steps)
        assert batch[key].device == frames.device
    for key in ("index", "episode_index", "frame_index", "task_index", "timestamp"):
        assert batch[key].shape == (3,)
    assert batch["frame_index"].tolist() == [1, 0, 0]


def test_windows_do_not_cross_the_ends_of_an_episode(source) -> None:
    frames, _, second = source
    last = LENGTHS[0] - 1
    batch = frames.batch(torch.tensor([second, last]), WINDOW)
    assert batch["observation.state_is_pad"].tolist() == [[True, False], [False, False]]
    assert batch["action_is_pad"].tolist() == [[False] * 3, [False, True, True]]
    assert torch.equal(batch["observation.state"][0, 0], batch["observation.state"][0, 1])
    assert torch.equal(batch["action"][1, 0], batch["action"][1, 2])


def test_keys_limit_what_is_gathered(source) -> None:
    frames, _, second = source
    indices = torch.tensor([second, 1])
    batch, whole = frames.batch(indices, WINDOW, keys=["action", "frame_index"]), frames.batch(indices, WINDOW)
    assert set(batch) == {"action", "action_is_pad", "frame_index"}
    assert all(torch.equal(values, whole[key]) for key, values in batch.items())


@pytest.mark.parametrize("name", ["lerobot", "multi", "own"])
def test_datasets_draw_valid_frames_and_have_statistics(name: str, tmp_path: Path) -> None:
    dataset: FrameDataset = LineDataset() if name == "own" else SOURCES[name](tmp_path)
    valid = set(dataset.valid_indices(2).tolist())
    sampler = dataset.make_sampler(batch_size=3, seed=1, drop_n_last_frames=2)
    assert {int(index) for k in range(100) for index in sampler[k]} == valid
    assert len(dataset.batch(sampler[0], WINDOW)["index"]) == 3
    stats, each = dataset.normalization_stats(lambda one: one.stats)
    assert stats.keys() == dataset.spec.observation.keys() | {"action"}
    assert each is None
    assert dataset.has_rewards == ("next.reward" in dataset.batch(sampler[0], WINDOW))


def test_a_dataset_without_weights_draws_every_frame_equally_often(tmp_path: Path) -> None:
    dataset = multi(tmp_path)
    expected = BatchSampler(dataset.valid_indices(1), 4, seed=3)
    sampler = dataset.make_sampler(4, seed=3, drop_n_last_frames=1)
    assert all(torch.equal(sampler[k], expected[k]) for k in range(5))
