"""The replay buffer: windows as over a dataset, first in first out, and what a restart finds."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robolearn.data.offline_online_loader import OfflineOnlineLoader
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.episodes import Episode
from robolearn.errors import UserError
from robolearn.rollouts.task_prompts import TaskEmbeddings
from robolearn.types import Feature, Spec, Window

CPU = torch.device("cpu")
SPEC = Spec(
    {"observation.state": Feature("STATE", (2,)), "observation.image": Feature("VISUAL", (3, 2, 2))},
    Feature("ACTION", (1,)),
    10.0,
)
WINDOW = Window(observation=(-1, 0, 1), action=(0, 1, 2), reward=(0, 1))


def episode(number: int, steps: int) -> Episode:
    """Values that tell the episode and the frame: observation t of episode n is 100 n + t."""
    times = 100 * number + np.arange(steps + 1)
    return Episode(
        seed=number,
        actions=(times[:-1, None] + 0.5).astype(np.float32),
        rewards=times[:-1] + 0.25,
        successes=np.arange(steps) == steps - 1,
        terminated=number % 2 == 0,
        truncated=number % 2 == 1,
        observations={
            "observation.state": np.stack([times, -times], 1).astype(np.float32),
            "observation.image": np.broadcast_to(times[:, None, None, None] % 256, (steps + 1, 3, 2, 2)).astype("u1"),
        },
    )


def buffer(folder: Path, capacity: int = 12, drop: int = 0) -> ReplayBuffer:
    return ReplayBuffer(folder / "replay", SPEC, capacity, CPU, drop)


def all_drawable(replay: ReplayBuffer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return replay.draw(4000, generator).unique()


def test_windows_end_where_episodes_do(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    replay.add(episode(1, 3))
    replay.add(episode(2, 2))
    batch = replay.batch(torch.tensor([0, 2, 5]), WINDOW)
    # The last observation of each episode is what its last action led to; there is no action after that.
    assert batch["observation.state"][..., 0].tolist() == [[100, 100, 101], [101, 102, 103], [200, 201, 202]]
    assert batch["observation.state_is_pad"].tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert batch["action"].squeeze(-1).tolist() == [[100.5, 101.5, 102.5], [102.5] * 3, [201.5] * 3]
    assert batch["action_is_pad"].tolist() == [[False] * 3, [False, True, True], [False, True, True]]
    assert batch["next.reward"].tolist() == [[100.25, 101.25], [102.25, 102.25], [201.25, 201.25]]
    assert batch["next.done"].tolist() == [False, True, True]
    assert batch["next.terminated"].tolist() == [False, False, True]
    assert batch["next.success"].tolist() == [False, True, True]
    assert batch["frame_index"].tolist() == [0, 2, 1]
    assert batch["episode_index"].tolist() == [0, 0, 1]
    assert batch["observation.image"].dtype == torch.uint8


def test_the_oldest_episodes_give_way_and_the_ring_goes_round(tmp_path: Path) -> None:
    replay = buffer(tmp_path, capacity=12)
    for number in range(9):
        replay.add(episode(number, 3))
        assert replay.frames <= 12
    positions = all_drawable(replay)
    states = replay.batch(positions, Window())["observation.state"][:, 0, 0]
    assert states.tolist() == [100 * n + t for n in (6, 7, 8) for t in range(3)]
    assert not replay.batch(positions, Window())["observation.state_is_pad"].any()


def test_frames_are_drawn_evenly_and_not_at_the_end(tmp_path: Path) -> None:
    replay = buffer(tmp_path, drop=1)
    replay.add(episode(0, 4))
    replay.add(episode(1, 1))  # nothing left to draw
    replay.add(episode(2, 3))
    counts = torch.bincount(replay.draw(50_000, torch.Generator().manual_seed(1)))
    drawn = {int(p): int(counts[p]) for p in counts.nonzero().flatten()}
    assert set(drawn) == {0, 1, 2, 7, 8}
    assert all(abs(count - 10_000) < 500 for count in drawn.values())


def test_a_restart_finds_the_same_frames_and_the_same_next_draw(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    for number in range(5):
        replay.add(episode(number, 3))
    state = replay.state_dict()
    draw = replay.draw(20, torch.Generator().manual_seed(3))
    expected = replay.batch(draw, WINDOW)
    for number in range(5, 9):  # evicts everything the state refers to
        replay.add(episode(number, 3))
    again = buffer(tmp_path)
    again.load_state_dict(state, keep_newer=False)
    assert torch.equal(again.draw(20, torch.Generator().manual_seed(3)), draw)
    found = again.batch(draw, WINDOW)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert again.next_index == 5
    assert not (tmp_path / "replay/00000005.safetensors").exists()


def test_a_restart_may_keep_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    replay.add(episode(0, 3))
    state = replay.state_dict()
    replay.add(episode(1, 3))
    again = buffer(tmp_path)
    again.load_state_dict(state, keep_newer=True)
    assert (again.next_index, again.frames) == (2, 8)


def test_only_what_no_checkpoint_needs_is_removed(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    for number in range(6):
        replay.add(episode(number, 3))
    replay.prune(before=2)
    assert sorted(file.stem for file in (tmp_path / "replay").glob("0*")) == [f"{n:08d}" for n in range(2, 6)]
    replay.prune(before=100)
    assert len(list((tmp_path / "replay").glob("0*"))) == 3


def test_an_episode_half_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replay = buffer(tmp_path)
    replay.add(episode(0, 3))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        replay.add(episode(1, 3))
    assert [file.name for file in sorted((tmp_path / "replay").glob("[!r]*"))] == ["00000000.safetensors"]


def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    with pytest.raises(UserError, match=r"online.buffer_capacity=12 has no room for an episode of 12 steps"):
        replay.add(episode(0, 12))
    replay.add(episode(0, 3))
    state = replay.state_dict()
    (tmp_path / "replay/00000000.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"00000000.safetensors, which the checkpoint refers to"):
        buffer(tmp_path).load_state_dict(state, keep_newer=False)


class Demonstrations:
    """A loader whose batch k says so."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        state = torch.full((self.size, 1, 2), -1.0 - k)
        return {"observation.state": state, "only.here": state, "next.reward": state[..., 0].double()}

    def iter_from(self, k: int):
        while True:
            yield self[k]
            k += 1


def mixed(replay: ReplayBuffer, n_replay: int, least: int = 0, num_workers: int = 0) -> OfflineOnlineLoader:
    rest: Any = Demonstrations(4 - n_replay) if n_replay < 4 else None
    offline: Any = Demonstrations(4)
    return OfflineOnlineLoader(offline, rest, replay, n_replay, Window(reward=(0,)), CPU, 3, least, 0, num_workers)


@pytest.mark.parametrize("n_replay", [0, 1, 4])
def test_every_mixed_batch_has_its_share(tmp_path: Path, n_replay: int) -> None:
    replay = buffer(tmp_path)
    replay.add(episode(1, 3))
    batches = mixed(replay, n_replay).iter_from(3)
    for _ in range(20):
        state = next(batches)["observation.state"]
        assert len(state) == 4
        assert (state[:, 0, 0] >= 100).sum() == n_replay


def test_new_episodes_are_drawn_from_at_once_and_batches_repeat(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    replay.add(episode(1, 3))
    loader = mixed(replay, 3)
    batches = loader.iter_from(3)
    first = next(batches)
    assert set(first) == {"observation.state", "next.reward"}
    assert first["next.reward"].dtype == torch.float64
    replay.add(episode(2, 3))
    seen = torch.cat([next(batches)["observation.state"][1:, 0, 0] for _ in range(10)])
    assert (seen >= 200).any()
    expected, again = next(batches), next(mixed(replay, 3).iter_from(14))
    assert all(torch.equal(again[key], value) for key, value in expected.items())


@pytest.mark.parametrize("n_replay", [3, 4])
def test_threads_that_gather_ahead_change_no_batch(tmp_path: Path, n_replay: int) -> None:
    """Also where episodes are added, and old ones evicted, between two batches."""
    streams = []
    for num_workers in (0, 2):
        replay = buffer(tmp_path / str(num_workers))
        batches = mixed(replay, n_replay, least=8, num_workers=num_workers).iter_from(3)
        found = []
        for k in range(30):
            if k in (2, 3, 9, 10, 21):
                replay.add(episode(k, 3))
            found.append(next(batches))
        batches.close()
        streams.append(found)
    for one, other in zip(*streams, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(other[key], value) for key, value in one.items())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


class Reader:
    """Encodes a task by its length."""

    def encode_tasks(self, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
        return {"task.length": torch.tensor([len(task) for task in tasks])}


@pytest.mark.parametrize("prompt", ["two", "three", "a new one"])
def test_collected_frames_have_the_task_that_the_policy_was_given(tmp_path: Path, prompt: str) -> None:
    policy: Any = Reader()
    embeddings = TaskEmbeddings(policy, ["one", "two", "three"], CPU, [prompt])
    replay = buffer(tmp_path)
    replay.add(episode(1, 3), embeddings.tasks.index("one"))
    state = replay.state_dict()
    replay.add(episode(2, 4), embeddings.tasks.index(prompt))
    again = buffer(tmp_path)
    again.load_state_dict(state, keep_newer=True)
    for each in (replay, again):
        batch = embeddings(each.batch(torch.tensor([0, 2, 4, 7]), Window()))
        assert batch["episode_index"].tolist() == [0, 0, 1, 1]
        assert [embeddings.tasks[index] for index in batch["task_index"]] == ["one", "one", prompt, prompt]
        assert batch["task.length"].tolist() == [3, 3, len(prompt), len(prompt)]


def test_demonstrations_alone_until_enough_is_collected(tmp_path: Path) -> None:
    replay = buffer(tmp_path)
    batches = mixed(replay, 4, least=8).iter_from(3)
    assert (next(batches)["observation.state"] == -4).all()
    replay.add(episode(1, 3))
    assert (next(batches)["observation.state"] == -5).all()
    replay.add(episode(2, 3))
    assert (next(batches)["observation.state"][..., 0] >= 100).all()
