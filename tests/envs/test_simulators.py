"""Aloha and xArm, alone and side by side with PushT."""

import os
import sys
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import processes

from robolearn.envs import Aloha, EnvFactory, PushT, Xarm, check_same_spec
from robolearn.envs.factory import open_simulator
from robolearn.errors import UserError
from robolearn.types import Feature

INSERTION, CUBE = "AlohaInsertion-v0", "AlohaTransferCube-v0"
LIFT = pytest.mark.xarm
TWO_ARMS = pytest.mark.aloha


def shapes(simulator: EnvFactory) -> dict[str, tuple[int, ...]]:
    return {key: feature.shape for key, feature in simulator.spec.observation.items()}


def alone(simulator: EnvFactory, seed: int, actions: list[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What an episode of these actions shows."""
    env = simulator.make_vec(1)
    seen = [env.reset(seed=[seed])[0]]
    seen += [env.step(action[None])[0] for action in actions]
    env.close()
    return seen


def raw(simulator: EnvFactory):
    """The simulator's own environment."""
    return open_simulator(*simulator.env_fn().args).unwrapped


def some_actions(simulator: EnvFactory, n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    size = {Aloha: 14, Xarm: 4, PushT: 2}[type(simulator)]
    middle = 256 if isinstance(simulator, PushT) else 0
    return [(middle + (1 + middle / 4) * rng.uniform(-1, 1, size)).astype(np.float32) for _ in range(n)]


TOP, JOINTS = {"observation.images.top": (3, 480, 640)}, {"observation.state": (14,)}
IMAGE = {"observation.image": (3, 84, 84)}


@TWO_ARMS
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"obs_type": "pixels_agent_pos"}, TOP | JOINTS),
        ({"obs_type": "pixels"}, TOP),
        ({"obs_type": "environment_state_agent_pos"}, {"observation.environment_state": (14,)} | JOINTS),
        ({"obs_type": "environment_state_agent_pos", "task": CUBE}, {"observation.environment_state": (7,)} | JOINTS),
        ({"obs_type": "state", "render_mode": None}, {"observation.state": (28,)}),
        ({"obs_type": "state", "task": CUBE}, {"observation.state": (21,)}),
        ({"cameras": ["angle", "top"], "observation_width": 64, "observation_height": 48, "obs_type": "pixels"},
         {"observation.images.angle": (3, 48, 64), "observation.images.top": (3, 48, 64)}),
    ],
)  # fmt: skip
def test_aloha_gives_every_obs_type_by_its_dataset_keys(options, expected):
    simulator = Aloha(**options)
    assert shapes(simulator) == expected
    assert (simulator.spec.action, simulator.spec.fps) == (Feature("ACTION", (14,)), 50)
    observation = alone(simulator, 3, some_actions(simulator, 1))[-1]
    assert {key: value.shape[1:] for key, value in observation.items()} == expected


@LIFT
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"obs_type": "pixels_agent_pos"}, IMAGE | {"observation.state": (4,)}),
        ({"obs_type": "pixels"}, IMAGE),
        ({"obs_type": "state", "render_mode": None}, {"observation.state": (28,)}),
    ],
)
def test_xarm_gives_every_obs_type_by_its_dataset_keys(options, expected):
    simulator = Xarm(**options)
    assert shapes(simulator) == expected
    assert (simulator.spec.action, simulator.spec.fps) == (Feature("ACTION", (4,)), 25)
    observation = alone(simulator, 3, some_actions(simulator, 1))[-1]
    assert {key: value.shape[1:] for key, value in observation.items()} == expected


@pytest.mark.parametrize("robot", [pytest.param("aloha", marks=TWO_ARMS), pytest.param("xarm", marks=LIFT)])
def test_keys_and_shapes_are_those_of_published_policies(robot, shared):
    """Their normalisers name every observation; its shape is there but for the image's height and width."""
    table = (shared / "golden/state_dict_keys" / f"act_{robot}.tsv").read_text()
    published = {
        line.split("\t")[0].split("buffer_")[1].removesuffix(".mean"): line.split("\t")[2]
        for line in table.splitlines()
        if line.startswith(("normalize_inputs.", "normalize_targets.")) and ".mean\t" in line
    }
    spec = (Aloha() if robot == "aloha" else Xarm()).spec
    features = spec.observation | {"action": spec.action}
    ours = {
        key.replace(".", "_"): str([3, 1, 1] if f.kind == "VISUAL" else list(f.shape)) for key, f in features.items()
    }
    assert ours == published


# Episodes repeat


@pytest.mark.parametrize(
    "simulator",
    [
        pytest.param(Aloha(task=INSERTION, obs_type="state"), marks=TWO_ARMS),
        pytest.param(Aloha(task=CUBE, obs_type="state"), marks=TWO_ARMS),
        pytest.param(Xarm(obs_type="state"), marks=LIFT),
    ],
    ids=["insertion", "cube", "lift"],
)
def test_a_seed_gives_the_same_episode_whatever_came_before_and_is_filmed(simulator):
    actions = some_actions(simulator, 20)
    once = alone(simulator, 7, actions)
    env = simulator.make_vec(1)
    env.set_attr("recording", True)
    env.reset(seed=[1])
    for action in reversed(actions):
        env.step(action[None])
        env.call("frame")
    again = [env.reset(seed=[7])[0]]
    for action in actions:
        again.append(env.step(action[None])[0])
        env.call("frame")
    env.close()
    for one, other in zip(once, again, strict=True):
        assert np.array_equal(one["observation.state"], other["observation.state"])
    assert not np.array_equal(once[0]["observation.state"], alone(simulator, 8, [])[0]["observation.state"])


@TWO_ARMS
def test_a_reset_without_a_seed_goes_on_from_the_seed_before():
    env = raw(Aloha(obs_type="state"))
    starts = []
    for _ in range(2):
        env.reset(seed=5)
        starts.append([env.reset()[0], env.reset()[0]])
    env.close()
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(*starts[0])


# What is fixed


@LIFT
def test_xarm_succeeds_where_the_block_is_lifted_and_not_before():
    env = raw(Xarm(obs_type="state"))
    env.reset(seed=0)
    for height, success in ((0.0, False), (0.14, False), (0.16, True)):
        pose = np.r_[env.center_of_table - [0.15, 0.1, 0.07 - height], 1, 0, 0, 0]
        env._utils.set_joint_qpos(env.model, env.data, "object_joint0", pose)
        env._mujoco.mj_forward(env.model, env.data)
        assert env.is_success() == success
        if success:
            assert env.get_reward() == pytest.approx(0.716, abs=0.01)


@LIFT
def test_xarm_rewards_coming_near_the_block_and_lifting_it():
    env = raw(Xarm(obs_type="state"))
    env.reset(seed=0)
    rewards = []
    for target in ([0.3, 0.1, 0.2], [0, 0, 0.05], [0, 0, 0.0]):
        pose = np.r_[env.eef + env.center_of_table - target, 1, 0, 0, 0]
        env._utils.set_joint_qpos(env.model, env.data, "object_joint0", pose)
        env._mujoco.mj_forward(env.model, env.data)
        rewards.append(env.get_reward())
    assert rewards == sorted(rewards)
    assert rewards[1] < 0 < 0.57 < rewards[2] < 0.72


@LIFT
def test_xarm_clips_what_a_policy_overdoes():
    simulator = Xarm(obs_type="state")
    wild, full = (alone(simulator, 0, [np.full(4, size, np.float32)])[-1] for size in (30, 1))
    assert np.array_equal(wild["observation.state"], full["observation.state"])


@TWO_ARMS
def test_aloha_takes_actions_beyond_one_as_they_are():
    env = raw(Aloha(obs_type="state"))
    home = env.reset(seed=0)[0][:14]
    assert env.action_space.contains(home.astype(np.float32))
    assert home.max() > 1
    env.step(home)
    assert env._env.physics.data.ctrl[2] == pytest.approx(home[2])
    bent = home.copy()
    bent[2] = 1.5
    for _ in range(50):
        state = env.step(bent)[0]
    env.close()
    assert state[2] == pytest.approx(1.5, abs=0.05)


@TWO_ARMS
def test_commands_that_tear_the_simulation_apart_end_the_episode_as_a_failure():
    env = Aloha(obs_type="state", render_mode=None).make_vec(1)
    env.reset(seed=[0])
    rng, space = np.random.default_rng(0), env.single_action_space
    for _ in range(100):
        wild = rng.uniform(space.low, space.high).astype(np.float32)  # type: ignore[attr-defined]
        observation, reward, terminated, _, info = env.step(wild[None])
        if terminated[0]:
            break
    assert terminated[0]
    assert (reward[0], bool(info["success"][0])) == (0, False)
    assert np.isfinite(observation["observation.state"]).all()
    env.close()


# Pictures

PAIR = [
    pytest.param(Aloha(), marks=TWO_ARMS, id="aloha"),
    pytest.param(Xarm(), marks=LIFT, id="xarm"),
    pytest.param(PushT(), marks=pytest.mark.pusht, id="pusht"),
]


def images(seen: list[dict[str, np.ndarray]]) -> np.ndarray:
    return np.stack([next(value[0] for key, value in o.items() if "image" in key) for o in seen])


@TWO_ARMS
@LIFT
@pytest.mark.pusht
def test_images_of_simulators_side_by_side_are_those_of_each_alone(tmp_path: Path):
    simulators = [Aloha(), Xarm(), PushT()]
    actions = [some_actions(simulator) for simulator in simulators]
    code = (
        "import sys; sys.path.insert(0, {tests!r})\n"
        "from envs.test_simulators import *\n"
        "np.save({file!r}, images(alone({name}(), 4, some_actions({name}()))))\n"
    )
    for simulator in simulators:
        name = type(simulator).__name__
        script = code.format(tests=str(Path(__file__).parents[1]), file=str(tmp_path / f"{name}.npy"), name=name)
        done = processes.run([sys.executable, "-c", script])
        assert done.returncode == 0, done.stderr

    # Interleaved, with another of each opened and closed in between.
    envs = [simulator.make_vec(1) for simulator in simulators]
    seen = [[env.reset(seed=[4])[0]] for env in envs]
    for step in range(len(actions[0])):
        for simulator, env, mine, taken in zip(simulators, envs, seen, actions, strict=True):
            other = simulator.make_vec(1)
            other.reset(seed=[step])
            mine.append(env.step(taken[step][None])[0])
            other.close()
    for simulator, env, mine in zip(simulators, envs, seen, strict=True):
        env.close()
        expected = np.load(tmp_path / f"{type(simulator).__name__}.npy")
        assert expected.std() > 10
        assert np.array_equal(images(mine), expected), type(simulator).__name__


@pytest.mark.parametrize("simulator", PAIR)
def test_processes_see_what_one_process_sees(simulator):
    actions = some_actions(simulator)
    env = simulator.make_vec(2, use_async=True)
    try:
        seen = [env.reset(seed=[3, 4])[0]] + [env.step(np.stack([a, a]))[0] for a in actions]
        seen = [{key: value[1:].copy() for key, value in o.items()} for o in seen[-1:]]
    finally:
        env.close()
    expected = alone(simulator, 4, actions)[-1:]
    for one, other in zip(seen, expected, strict=True):
        for key in other:
            assert np.array_equal(one[key], other[key]), key


@TWO_ARMS
@LIFT
@pytest.mark.parametrize("robot", [Aloha, Xarm])
def test_render_quality_changes_images_a_little_and_is_reported(robot):
    fast, full = (images(alone(robot(render_quality=q), 0, [])).astype(float) for q in ("fast", "full"))
    assert 0 < np.abs(fast - full).mean() < 5
    assert robot(render_quality="full").spec.settings == {"render_quality": "full"}
    assert robot(obs_type="state").render_settings == {}


@LIFT
def test_a_black_image_is_refused(monkeypatch):
    env = Xarm().make_vec(1)
    monkeypatch.setattr("mujoco.Renderer.render", lambda self: np.zeros((84, 84, 3), np.uint8))
    with pytest.raises(UserError, match="black"):
        env.reset(seed=[0])
    env.close()


@LIFT
@pytest.mark.parametrize(("backend", "way"), [("egl", "libegl-mesa0"), ("osmesa", "libosmesa6"), ("glfw", "=egl")])
def test_a_display_that_cannot_be_had_gives_the_command(monkeypatch, backend, way):
    def broken(*args, **kwargs):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.setattr("mujoco.Renderer.__init__", broken)
    monkeypatch.setattr("mujoco.Renderer.__del__", lambda self: None, raising=False)
    with pytest.raises(UserError, match=f"MUJOCO_GL={backend}.*{way}"):
        Xarm().make_vec(1)


@pytest.mark.skipif(sys.platform != "linux" or bool(find_library("OSMesa")), reason="has OSMesa")
@pytest.mark.parametrize("robot", [pytest.param("Aloha", marks=TWO_ARMS), pytest.param("Xarm", marks=LIFT)])
def test_a_library_that_is_really_missing_gives_the_command(robot):
    code = f"from robolearn.envs import {robot}; {robot}().make_vec(1)"
    environ = os.environ | {"MUJOCO_GL": "osmesa"}
    environ.pop("PYOPENGL_PLATFORM", None)
    done = processes.run([sys.executable, "-c", code], env=environ)
    last = done.stderr.strip().splitlines()[-1]
    assert "can't render here with MUJOCO_GL=osmesa: apt-get install -y libosmesa6" in last


# What users get wrong


def message(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def test_values_are_checked_before_anything_is_imported():
    assert "did you mean 'pixels_agent_pos'?" in message(lambda: Aloha(obs_type="pixel_agent_pos"))
    assert "did you mean 'state'?" in message(lambda: Xarm(obs_type="stat"))
    assert "did you mean 'top'?" in message(lambda: Aloha(cameras=["tob"]))
    assert "env.cameras" in message(lambda: Aloha(cameras=[]))
    assert "env.render_quality=best is none of fast, full" in message(lambda: Xarm(render_quality="best"))
    assert "env.render_mode=rgb_array" in message(lambda: Xarm(render_mode=None))


@TWO_ARMS
def test_an_unknown_task_names_the_nearest():
    assert "did you mean AlohaInsertion-v0?" in message(lambda: Aloha(task="AlohaInsert-v0").spec)


@TWO_ARMS
@LIFT
def test_a_dataset_of_another_robot_or_obs_type_is_refused():
    text = message(lambda: check_same_spec(Xarm().spec, Aloha().spec))
    assert "does not give observation.image (3, 84, 84)" in text
    assert "action has shape (4,) in the dataset and (14,) in the simulator" in text
    text = message(lambda: check_same_spec(Xarm(obs_type="state").spec, Xarm().spec))
    assert "observation.state has shape (28,) in the dataset and (4,) in the simulator" in text


@pytest.mark.parametrize(
    ("robot", "package", "since", "apart"),
    [
        (Xarm, "gym_xarm", (3, 12), "pip install --no-deps gym-xarm"),
        (Aloha, "gym_aloha", (3, 13), "pip install --no-deps gym-aloha dm-control==1.0.41"),
    ],
    ids=["xarm", "aloha"],
)
def test_the_pip_command_fits_this_python(robot, package, since, apart, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    wanted = apart if sys.version_info >= since else f"pip install {package.replace('_', '-')}"
    assert wanted in message(lambda: robot().spec)


@pytest.mark.parametrize("robot", [pytest.param("Aloha", marks=TWO_ARMS), pytest.param("Xarm", marks=LIFT)])
def test_a_process_that_leaves_its_simulator_open_ends_quietly(robot):
    code = f"from robolearn.envs import {robot}; env = {robot}().make_vec(1); env.reset(seed=[0])"
    done = processes.run([sys.executable, "-c", code])
    assert done.returncode == 0
    assert "Error" not in done.stderr


@LIFT
def test_torch_can_load_triton_after_a_simulator_has_loaded_opengl():
    pytest.importorskip("triton")
    code = "from robolearn.envs import Xarm; Xarm().make_vec(1).reset(seed=[0]); import triton"
    assert processes.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.pusht
def test_pusht_is_seen_as_gym_pusht_draws_it() -> None:
    from gym_pusht.envs.pusht import PushTEnv

    env: Any = raw(PushT())
    for seed in range(3):
        env.reset(seed=seed)
        env.step(np.array([300.0, 200.0]))
        screen = env._draw()
        np.testing.assert_array_equal(env._get_img(screen, 96, 84), PushTEnv._get_img(env, screen, 96, 84))
