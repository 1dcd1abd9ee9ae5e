import dataclasses
import os
import sys

import numpy as np
import pytest
import torch
from fakes import fake_env, processes
from fakes.errors import message
from fakes.fake_env import reach_env
from hydra.utils import instantiate

from robolearn.envs import EnvFactory, PushT, check_same_spec
from robolearn.types import Feature, Spec


@pytest.mark.pusht
@pytest.mark.parametrize(
    ("obs_type", "shapes"),
    [
        ("pixels_agent_pos", {"observation.image": (3, 96, 96), "observation.state": (2,)}),
        ("environment_state_agent_pos", {"observation.environment_state": (16,), "observation.state": (2,)}),
        ("pixels", {"observation.image": (3, 96, 96)}),
        ("state", {"observation.state": (5,)}),
    ],
)
def test_pusht_gives_every_obs_type_by_its_dataset_keys(obs_type, shapes):
    simulator = PushT(obs_type=obs_type)
    assert {key: feature.shape for key, feature in simulator.spec.observation.items()} == shapes
    assert (simulator.spec.action, simulator.spec.fps) == (Feature("ACTION", (2,)), 10)
    env = simulator.make_vec(2)
    observation, _ = env.reset(seed=[3, 4])
    env.close()
    for key, shape in shapes.items():
        image = key.startswith("observation.image")
        assert observation[key].shape == (2, *shape)
        assert observation[key].dtype == (np.uint8 if image else np.float32)
    kinds = {"observation.image": "VISUAL", "observation.environment_state": "ENV", "observation.state": "STATE"}
    assert all(feature.kind == kinds[key] for key, feature in simulator.spec.observation.items())


@pytest.mark.pusht
def test_pixels_are_those_of_the_simulator_channel_first():
    env = PushT().make_vec(1)
    observation, _ = env.reset(seed=[7])
    raw = env.envs[0].unwrapped.get_obs()
    env.close()
    np.testing.assert_array_equal(observation["observation.image"][0], raw["pixels"].transpose(2, 0, 1))
    np.testing.assert_array_equal(observation["observation.state"][0], raw["agent_pos"].astype(np.float32))


@pytest.mark.pusht
def test_visualization_and_observation_sizes_are_options():
    env = PushT(observation_width=48, observation_height=32, visualization_width=64, visualization_height=40).make_vec(
        1
    )
    observation, _ = env.reset(seed=[0])
    env.set_attr("recording", True)
    frame = env.call("frame")[0]
    env.close()
    assert observation["observation.image"].shape == (1, 3, 32, 48)
    assert frame.shape == (40, 64, 3)


def test_an_own_environment_needs_a_config_only():
    node = {
        "_target_": "robolearn.envs.EnvFactory",
        "id": "fake_env/Reach-v0",
        "package": "fakes.fake_env",
        "fps": 10,
        "episode_length": 7,
        "obs_type": "state",
        "features_map": {"state": "observation.state"},
    }
    simulator = instantiate(node, _convert_="all")
    assert simulator.spec == Spec({"observation.state": Feature("STATE", (2,))}, Feature("ACTION", (2,)), 10)
    env = simulator.make_vec(1)
    env.reset(seed=[0])
    flags = [env.step(np.zeros((1, 2), np.float32))[3][0] for _ in range(7)]
    env.close()
    assert flags == [False] * 6 + [True]


def test_nested_and_left_out_observations():
    assert set(reach_env().spec.observation) == {"observation.state", "observation.images.top"}
    without = reach_env(features_map={**fake_env.FEATURES, "pixels/top": None})
    assert list(without.spec.observation) == ["observation.state"]
    assert reach_env(image=(3, 6, 8)).spec.observation["observation.images.top"].shape == (3, 6, 8)


@pytest.mark.parametrize("use_async", [False, True])
def test_a_finished_simulator_is_left_alone_until_its_reset(use_async):
    env = reach_env().make_vec(2, use_async)
    try:
        env.reset(seed=[0, 1])
        actions = np.array([[2, 0], [0.01, 0]], np.float32)
        seen = []
        for _ in range(4):
            observation, rewards, terminated, _, info = env.step(actions)
            seen.append((observation["observation.state"][0].copy(), rewards[0], terminated[0]))
        assert env.get_attr("steps_taken") == (1, 4)
        assert seen[0][1] > 1
        assert info["_success"].tolist() == [False, True]
        for state, reward, done in seen[1:]:
            np.testing.assert_array_equal(state, seen[0][0])
            assert (reward, done) == (0, True)
        env.reset(seed=[0, 1])
        env.step(actions)
        assert env.get_attr("steps_taken") == (2, 5)
    finally:
        env.close()


def test_an_idle_place_runs_nothing():
    env = reach_env().make_vec(2)
    env.set_attr("idle", [False, True])
    env.reset(seed=[0, 0])
    _, _, _, truncated, _ = env.step(np.zeros((2, 2), np.float32))
    assert env.get_attr("resets") == (1, 0)
    assert env.get_attr("steps_taken") == (1, 0)
    assert truncated.tolist() == [False, True]
    env.close()


@pytest.mark.pusht
def test_workers_do_not_import_torch():
    code = "import robolearn.envs, gym_pusht.envs, sys; sys.exit('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_survive_the_signals_of_a_cluster_and_end_with_the_vector():
    env = reach_env().make_vec(2, use_async=True)
    env.reset(seed=[0, 1])
    numbers = [process.pid for process in env.processes]
    for number in numbers:
        for name in (2, 10, 12, 15):
            os.kill(number, name)
    env.step(np.zeros((2, 2), np.float32))
    env.close()
    assert all(process.exitcode is not None for process in env.processes)


# What users get wrong


def test_values_are_checked_before_anything_is_imported():
    assert "did you mean 'pixels_agent_pos'?" in message(lambda: PushT(obs_type="pixel_agent_pos"))
    assert "env.render_mode=rgb_array" in message(lambda: PushT(obs_type="pixels", render_mode=None))


def test_an_unknown_task_names_the_nearest():
    assert "env.task=PushT-v1" in (text := message(lambda: PushT(task="PushT-v1").spec))
    assert "did you mean PushT-v0?" in text
    assert "env.id" in message(lambda: EnvFactory("nobody/Knows-v3", 10, 10, {}).spec)


def test_a_refused_argument_shows_what_the_environment_said():
    text = message(lambda: reach_env(obs_type="boht").spec)
    assert "ValueError: obs_type boht is not known" in text
    assert "obs_type=boht" in text
    assert "friction" in message(lambda: EnvFactory("fake_env/Reach-v0", 10, 10, {}, kwargs={"friction": 1}).spec)


def test_features_map_mistakes_name_the_key():
    assert "'pixels/top'" in message(lambda: reach_env(features_map={"agent_pos": "observation.state"}).spec)
    wrong = {"agent_pos": "state", "pixels/top": None}
    assert "env.features_map.agent_pos=state" in message(lambda: reach_env(features_map=wrong).spec)
    twice = {"agent_pos": "observation.state", "pixels/top": "observation.state"}
    assert "twice" in message(lambda: reach_env(features_map=twice).spec)
    image = {"agent_pos": "observation.image", "pixels/top": None}
    assert "uint8" in message(lambda: reach_env(features_map=image).spec)


def test_a_missing_package_gives_the_command():
    text = message(lambda: EnvFactory("x/Y-v0", 10, 10, {}, package="gym_not_there").spec)
    assert "pip install gym-not-there" in text


@pytest.mark.parametrize(
    ("library", "packages"),
    [("libGL.so.1", "libgl1 libglib2.0-0"), ("libgthread-2.0.so.0", "libgl1 libglib2.0-0"), ("libEGL.so.1", "libegl1")],
)
def test_a_missing_library_gives_the_command(monkeypatch, library, packages):
    def broken(*args, **kwargs):
        raise ImportError(f"{library}: cannot open shared object file: No such file or directory")

    monkeypatch.setattr("robolearn.envs.factory.gym.make", broken)
    assert f"apt-get install -y {packages}" in message(lambda: PushT().spec)


def test_a_missing_success_names_the_key():
    env = reach_env(reports="solved").make_vec(1)
    env.reset(seed=[0])
    text = message(lambda: env.step(np.zeros((1, 2), np.float32)))
    env.close()
    assert "env.success_key" in text
    assert "solved" in text


@pytest.mark.parametrize("use_async", [False, True])
@pytest.mark.parametrize(
    ("crash_in", "words"),
    [
        ("reset", ["in reset", "the arm has no power"]),
        ("step", ["in step 4", "seed 5", "joint 3 broke", "fake_env.py"]),
    ],
)
def test_a_crash_names_the_simulator_the_seed_and_the_step(use_async, crash_in, words):
    env = reach_env(crash_in=crash_in).make_vec(1, use_async)

    def run() -> None:
        env.reset(seed=[5])
        for _ in range(5):
            env.step(np.zeros((1, 2), np.float32))

    try:
        text = message(run)
    finally:
        env.close()
    for word in ["fake_env/Reach-v0", *words]:
        assert word in text


# Dataset and simulator

IMAGES = Spec(
    {"observation.image": Feature("VISUAL", (3, 96, 96)), "observation.state": Feature("STATE", (2,))},
    Feature("ACTION", (2,)),
    10,
)
KEYPOINTS = Spec(
    {"observation.environment_state": Feature("ENV", (16,)), "observation.state": Feature("STATE", (2,))},
    Feature("ACTION", (2,)),
    10,
)


@pytest.mark.pusht
def test_equal_specs_and_further_observations_pass():
    check_same_spec(IMAGES, PushT().spec)
    state = Spec({"observation.state": Feature("STATE", (2,))}, Feature("ACTION", (2,)), 10)
    check_same_spec(state, IMAGES)


def test_missing_observations_say_which_obs_type_has_them():
    text = message(lambda: check_same_spec(KEYPOINTS, IMAGES))
    assert "observation.environment_state (16,)" in text
    assert "env.obs_type=environment_state_agent_pos" in text
    text = message(lambda: check_same_spec(IMAGES, KEYPOINTS))
    assert "observation.image (3, 96, 96)" in text
    assert "env.obs_type=pixels_agent_pos" in text
    assert "dataset=pusht_keypoints" in text


def test_shapes_and_actions_that_differ_are_named():
    five = Spec({"observation.state": Feature("STATE", (5,))}, Feature("ACTION", (4,)), 10)
    text = message(lambda: check_same_spec(five, IMAGES))
    assert "observation.state has shape (5,) in the dataset and (2,) in the simulator" in text
    assert "action has shape (4,) in the dataset and (2,) in the simulator" in text


@pytest.mark.pusht
def test_the_spec_of_the_recorded_datasets_fits(shared):
    for folder, obs_type in (("pusht_v30", "pixels_agent_pos"), ("pusht_keypoints_v30", "environment_state_agent_pos")):
        import json

        features = json.loads((shared / "data" / folder / "meta" / "info.json").read_text())["features"]
        for key, feature in PushT(obs_type=obs_type).spec.observation.items():
            shape = tuple(features[key]["shape"])
            assert feature.shape == ((shape[2], *shape[:2]) if len(shape) == 3 else shape)


def test_torch_is_not_touched_by_a_simulator():
    before = torch.random.get_rng_state()
    env = reach_env().make_vec(1)
    env.reset(seed=[0])
    env.close()
    assert torch.equal(before, torch.random.get_rng_state())


def test_other_settings_than_the_dataset_was_recorded_with_are_told(caplog):
    recorded = dataclasses.replace(IMAGES, settings={"render_quality": "full", "lights": 3})
    check_same_spec(recorded, dataclasses.replace(IMAGES, settings={"render_quality": "fast"}))
    assert "set env.render_quality=full" in caplog.text
    caplog.clear()
    check_same_spec(recorded, recorded)
    check_same_spec(IMAGES, recorded)  # tells nothing, as LeRobot's, which were rendered in full quality
    assert not caplog.text
    check_same_spec(IMAGES, dataclasses.replace(IMAGES, settings={"render_quality": "fast"}))
    assert "set env.render_quality=full" in caplog.text
