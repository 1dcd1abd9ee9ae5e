import json
import random

import av
import numpy as np
import pytest
import torch
from fakes import fake_env
from fakes.errors import message
from fakes.fake_env import reach_env

from robolearn.envs import PushT
from robolearn.episodes import RolloutInterrupted
from robolearn.rollouts.evaluation import Evaluator, wilson_interval
from robolearn.rollouts.video_recorder import grid, mp4, shrink


def evaluate(tmp_path, agent=None, simulator=None, **options):
    options = {"n_episodes": 6, "batch_size": 3, "seed": 40, "n_videos": 0, **options}
    return Evaluator(simulator or reach_env(episode_length=6), **options)(agent or fake_env.Forward(), tmp_path)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("use_async_envs", [False, True])
def test_figures_do_not_depend_on_batch_size_nor_on_processes(tmp_path, batch_size, use_async_envs):
    expected = evaluate(tmp_path, n_episodes=5, batch_size=5)
    result = evaluate(tmp_path, n_episodes=5, batch_size=batch_size, use_async_envs=use_async_envs)
    assert result.episodes == expected.episodes
    assert [row["seed"] for row in result.episodes] == [40, 41, 42, 43, 44]
    assert 0 < result.scalars["success_rate"] < 1
    del result.scalars["seconds_per_episode"], expected.scalars["seconds_per_episode"]
    assert result.scalars == expected.scalars


def test_scalars_are_means_over_the_rows(tmp_path):
    result = evaluate(tmp_path)
    scalars, rows = result.scalars, result.episodes
    assert scalars["success_rate"] == np.mean([row["success"] for row in rows])
    assert scalars["avg_sum_reward"] == pytest.approx(np.mean([row["sum_reward"] for row in rows]))
    assert scalars["avg_max_reward"] == pytest.approx(np.mean([row["max_reward"] for row in rows]))
    assert scalars["success_low"] < scalars["success_rate"] < scalars["success_high"]
    assert scalars["seconds_per_episode"] > 0
    recorded = json.loads((tmp_path / "eval.json").read_text())
    assert recorded["episodes"] == rows
    assert recorded["success_rate"] == scalars["success_rate"]
    assert (recorded["seed"], recorded["n_episodes"], recorded["env"]["id"]) == (40, 6, "fake_env/Reach-v0")


def test_no_success_rate_where_none_is_known(tmp_path):
    result = evaluate(tmp_path, simulator=reach_env(episode_length=5, success_key=None))
    assert "success_rate" not in result.scalars
    assert result.episodes[0]["success"] is None


# Newcombe 1998, table I, method 3; 0 of 20 as in Brown, Cai and DasGupta 2001
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)
    assert all(0 <= bound <= 1 for bound in mirrored)


def test_randomness_is_left_alone_and_depends_on_the_seed_only(tmp_path):
    def state() -> tuple:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()

    torch.manual_seed(1)
    before = state()
    first = evaluate(tmp_path, fake_env.Noisy())
    assert state() == before
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert evaluate(tmp_path, fake_env.Noisy()).episodes == first.episodes
    other = [row["sum_reward"] for row in evaluate(tmp_path, fake_env.Noisy(), seed=41).episodes]
    assert other[:-1] != [row["sum_reward"] for row in first.episodes][1:]


def test_randomness_is_left_alone_by_an_evaluation_that_fails(tmp_path):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    message(lambda: evaluate(tmp_path, simulator=reach_env(crash_in="step")))
    with pytest.raises(RolloutInterrupted):
        Evaluator(reach_env(), 2, 2, n_videos=1)(fake_env.Noisy(), tmp_path, stop=lambda: True)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()
    assert before[2] == random.getstate()
    assert not list(tmp_path.glob("*.mp4")), "no part of a video stays"
    assert not list(tmp_path.glob(".*"))


def frames_of(path) -> np.ndarray:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])


def test_videos_play_and_show_the_first_episodes(tmp_path):
    result = evaluate(tmp_path, n_episodes=5, batch_size=2, n_videos=3)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["episode_000.mp4", "episode_001.mp4", "episode_002.mp4", "eval.json", "grid.mp4"]
    longest = max(row["length"] for row in result.episodes[:3]) + 1
    for i, row in enumerate(result.episodes[:3]):
        assert row["video"] == f"episode_{i:03d}.mp4"
        assert frames_of(tmp_path / row["video"]).shape == (row["length"] + 1, 32, 40, 3)
    assert result.episodes[3]["video"] is None
    assert result.video.shape == (longest, 66, 82, 3)
    together = frames_of(tmp_path / "grid.mp4")
    assert together.shape == result.video.shape
    assert np.abs(together.astype(int) - result.video).mean() < 3
    assert result.fps == 10


@pytest.mark.pusht
def test_pusht_is_filmed_at_its_visualization_size(tmp_path):
    simulator = PushT(obs_type="state", episode_length=3, visualization_width=384, visualization_height=384)

    class Push(fake_env.Forward):
        def __call__(self, observation):
            return observation["observation.state"][:, 2:4]

    result = evaluate(tmp_path, Push(), simulator, n_episodes=2, batch_size=2, n_videos=2)
    assert result.video.shape == (4, 192, 384, 3)
    assert frames_of(tmp_path / "episode_001.mp4").shape == (4, 384, 384, 3)


def test_no_videos_no_files(tmp_path):
    assert evaluate(tmp_path).video is None
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_numbers_that_make_no_sense_name_their_keys():
    text = message(lambda: Evaluator(reach_env(), n_episodes=10, batch_size=50))
    assert "eval.batch_size=50" in text
    assert "eval.n_episodes=10" in text
    assert "eval.n_videos" in message(lambda: Evaluator(reach_env(render_mode=None)))
    Evaluator(reach_env(render_mode=None), n_videos=0)


def test_a_folder_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in message(lambda: evaluate(tmp_path / "file" / "eval"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("robolearn.rollouts.evaluation.write_json", full)
    text = message(lambda: evaluate(tmp_path))
    assert "No space left on device" in text
    assert str(tmp_path) in text


def test_pictures_of_videos():
    big = np.arange(10 * 7 * 3).reshape(10, 7, 3).astype(np.uint8)
    small = shrink(big, 5)
    assert small.shape == (5, 3, 3)
    assert small[0, 0, 0] == int(big[:2, :2, 0].mean() + 0.5)
    assert shrink(big, 10) is big
    one, two = [np.full((2, 2, 3), v, np.uint8) for v in (1, 2)], [np.full((2, 2, 3), 7, np.uint8)]
    together = grid([one, two, two], columns=2)
    assert together.shape == (2, 4, 4, 3)
    assert together[:, 0, 0, 0].tolist() == [1, 2]
    assert together[1, 0, 2, 0] == 7
    assert together[1, 2, 2, 0] == 0


def test_a_video_cut_short_leaves_no_file(tmp_path):
    def cut_short() -> None:
        with mp4(tmp_path / "a.mp4", 10) as write:
            write(np.zeros((4, 4, 3), np.uint8))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cut_short()
    assert not list(tmp_path.iterdir())
