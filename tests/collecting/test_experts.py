import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import shapely
from fakes import processes

from robolearn.collecting.experts import AlohaInsertionDemonstrator, AlohaTransferCubeDemonstrator, PushTDemonstrator
from robolearn.collecting.experts.path_planning import shortest_path
from robolearn.collecting.experts.push_physics import SimulatedPush, State
from robolearn.collecting.experts.pusht_expert import trapezoidal_trajectory
from robolearn.collecting.experts.scene import Scene
from robolearn.collecting.experts.viperx import LOWER, UPPER, joints_for, rotation
from robolearn.collecting.experts.waypoints import UnreachableError, Waypoint, motion
from robolearn.envs import Aloha, PushT
from robolearn.errors import UserError

FIELD = (0.0, 0.0, 100.0, 100.0)


@pytest.fixture(scope="module")
def pusht():
    env = PushT(obs_type="state", render_mode=None).make_vec(1)
    yield env.envs[0]  # type: ignore[union-attr]
    env.close()


@pytest.fixture(scope="module", params=[AlohaTransferCubeDemonstrator, AlohaInsertionDemonstrator])
def aloha(request):
    """Aloha without images, and its demonstrator."""
    task = {"transfer_cube": "AlohaTransferCube-v0", "insertion": "AlohaInsertion-v0"}[request.param.task]
    try:
        env = Aloha(task=task, obs_type="state", render_mode=None).make_vec(1).envs[0]  # type: ignore[union-attr]
    except UserError as error:
        pytest.skip(str(error))
    return env, request.param(env)


def demonstrate(env, demonstrator, seed, noise=0.0):
    """An episode's actions (T, A), and whether it succeeded."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    demonstrator.reset(np.random.default_rng(seed))
    actions = []
    while True:
        action = demonstrator.act()
        actions.append(action)
        _, _, terminated, truncated, info = env.step(action + rng.normal(0, noise, action.shape))
        if terminated or truncated:
            return np.array(actions), info.get("success", info.get("is_success"))


@pytest.mark.pusht
def test_pusht_succeeds_with_targets_as_calm_as_peoples(pusht):
    demonstrator = PushTDemonstrator(pusht)
    for seed in range(2000, 2006):
        actions, success = demonstrate(pusht, demonstrator, seed)
        assert success
        assert actions.dtype == np.float32
        assert np.linalg.norm(np.diff(actions, axis=0), axis=1).max() <= 18.01


@pytest.mark.pusht
def test_pusht_makes_good_for_noise(pusht):
    demonstrator = PushTDemonstrator(pusht)
    assert all(demonstrate(pusht, demonstrator, seed, noise=5.0)[1] for seed in range(2000, 2004))


@pytest.mark.pusht
def test_pusht_repeats_an_episode_whatever_came_before(pusht):
    first, _ = demonstrate(pusht, PushTDemonstrator(pusht), 2001)
    demonstrator = PushTDemonstrator(pusht)
    demonstrate(pusht, demonstrator, 2002)
    again, _ = demonstrate(pusht, demonstrator, 2001)
    assert first.tobytes() == again.tobytes()


@pytest.mark.pusht
def test_sandbox_moves_as_the_environment_does(pusht):
    pusht.reset(seed=2000)
    sandbox = SimulatedPush(pusht.unwrapped)
    state = State.of(pusht.unwrapped)
    sandbox.set(state)
    target = state.block
    for _ in range(20):
        sandbox.step(target)
        pusht.step(np.array(target))
    moved = State.of(pusht.unwrapped)
    assert np.hypot(*np.subtract(moved.block, state.block)) > 10
    # Not to the last bit: the solver remembers contacts.
    np.testing.assert_allclose(sandbox.state().block, moved.block, atol=0.2)
    assert sandbox.state().angle == pytest.approx(moved.angle, abs=2e-3)


@pytest.mark.pusht
def test_pusht_refuses_what_it_cannot_do(pusht):
    with pytest.raises(UserError, match=r"demonstrator\.speed=0 must be above 0"):
        PushTDemonstrator(pusht, speed=0)


def test_aloha_succeeds_smoothly(aloha):
    for seed in range(2000, 2002):
        actions, success = demonstrate(*aloha, seed)
        assert success
        assert actions.dtype == np.float32
        assert actions.shape[1] == 14
        assert len(actions) < 300
        assert np.abs(np.diff(actions, axis=0)).max() <= 0.0801


@pytest.mark.long
def test_aloha_succeeds_smoothly_over_many_seeds(aloha):
    failed, jump = [], 0.0
    for seed in range(2000, 2020):
        actions, success = demonstrate(*aloha, seed)
        failed += [] if success else [seed]
        jump = max(jump, float(np.abs(np.diff(actions, axis=0)).max()))
    assert len(failed) <= 1, failed
    assert jump < 0.15


def test_aloha_repeats_an_episode_whatever_came_before(aloha):
    env, demonstrator = aloha
    first, _ = demonstrate(env, demonstrator, 2001)
    demonstrate(env, demonstrator, 2002)
    again, _ = demonstrate(env, type(demonstrator)(env), 2001)
    assert first.tobytes() == again.tobytes()


def test_aloha_leaves_the_environment_alone_at_reset(aloha):
    env, demonstrator = aloha
    env.reset(seed=2000)
    scene = Scene(env.unwrapped)
    before = scene.joints()
    demonstrator.reset(np.random.default_rng(0))
    assert np.array_equal(scene.joints(), before)


def test_aloha_takes_part_in_no_other_task(aloha):
    env, demonstrator = aloha
    others = {AlohaInsertionDemonstrator, AlohaTransferCubeDemonstrator} - {type(demonstrator)}
    with pytest.raises(UserError, match="demonstrates env=aloha_"):
        others.pop()(env)
    with pytest.raises(UserError, match=r"demonstrator\.rehearsals=0 must be at least 1"):
        type(demonstrator)(env, rehearsals=0)


def test_joints_put_the_fingertips_where_they_are_to_be():
    mujoco = pytest.importorskip("mujoco", exc_type=ImportError)
    assets = pytest.importorskip("gym_aloha.constants", exc_type=ImportError).ASSETS_DIR
    model = mujoco.MjModel.from_xml_path(str(assets / "bimanual_viperx_transfer_cube.xml"))
    data = mujoco.MjData(model)
    rng, count = np.random.default_rng(0), 0
    for _ in range(300):
        yaw, pitch, roll = rng.uniform([-1, 0, -1.6], [1, 1.7, 1.6])
        orientation = rotation("z", yaw) @ rotation("y", pitch) @ rotation("x", roll)
        position = rng.uniform([0.2, -0.2, 0.0], [0.6, 0.2, 0.4])
        joints = joints_for(position, orientation)
        if joints is None:
            continue
        assert ((joints > LOWER) & (joints < UPPER)).all()
        data.qpos[:6] = joints
        mujoco.mj_kinematics(model, data)
        hand = model.body("vx300s_left/gripper_link").id
        turned = data.xmat[hand].reshape(3, 3)
        np.testing.assert_allclose(turned, orientation, atol=1e-9)
        tip = data.xpos[hand] + 0.1347 * turned[:, 0] - model.body("vx300s_left").pos
        np.testing.assert_allclose(tip, position, atol=1e-9)
        count += 1
    assert count > 200


def test_motion_keeps_its_limit_its_end_and_its_reach():
    start = np.array([0, -0.96, 1.16, 0, -0.3, 0, 0.1])
    down = [Waypoint(5, (-0.1, 0.6, 0.1), 1.3, 0.9), Waypoint(30, (-0.1, 0.6, 0.03), 1.3, 0.9, straight=True)]
    targets = motion("left", start, down, fastest=0.08)
    assert np.abs(np.diff(np.vstack([start, targets]), axis=0)).max() <= 0.0801
    assert targets[-1, 6] == pytest.approx(0.9)
    assert np.abs(targets[-1] - targets[-2]).max() < 0.01
    with pytest.raises(UnreachableError):
        motion("left", start, [Waypoint(5, (0.6, 0.5, 0.1), 1.3, 0.9)], fastest=0.08)


def test_the_path_goes_around():
    wall = shapely.box(40, 20, 60, 80)
    path = shortest_path((10, 50), (90, 50), wall, 5, FIELD)
    assert path is not None
    assert path[-1] == (90, 50)
    line = shapely.LineString([(10, 50), *path])
    assert line.distance(wall) == pytest.approx(5, abs=0.5)
    # Over the corners (35, 15) and (65, 15), or their mirror images.
    assert line.length == pytest.approx(30 + 2 * np.hypot(25, 35), abs=1)


def test_a_path_from_too_close_leaves_first_and_none_is_none():
    wall = shapely.box(40, 20, 60, 80)
    path = shortest_path((39, 50), (10, 50), wall, 5, FIELD)
    assert path is not None
    assert path[0] == pytest.approx((35, 50))
    assert shortest_path((10, 50), (90, 50), shapely.box(40, -10, 60, 110), 5, FIELD) is None


def test_a_trajectory_keeps_its_speed_and_arrives():
    points = np.array(
        [(0.0, 0.0), *trapezoidal_trajectory([(0.0, 0.0), (100.0, 0.0), (100.0, 50.0)], speed=18, end_speed=0)]
    )
    assert tuple(points[-1]) == (100.0, 50.0)
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert lengths.max() <= 18 + 1e-9
    assert lengths[-1] < 8


def test_demonstrators_start_without_torch():
    code = "import sys, robolearn.collecting.experts; sys.exit('torch' in sys.modules)"
    assert processes.run([sys.executable, "-c", code]).returncode == 0


SIMULATOR = {"pusht": "pusht", "xarm_lift": "xarm", "aloha_transfer_cube": "aloha", "aloha_insertion": "aloha"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=getattr(pytest.mark, of)) for name, of in SIMULATOR.items()])
def test_each_is_checked_by_its_name(name, capsys):
    script = runpy.run_path(str(Path(__file__).parents[2] / "scripts/check_demonstrators.py"))
    assert script["check"](name, [], range(2000, 2001), None) == 0
    assert "100.0% of 1 episodes" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no key 'sped'"):
        script["check"](name, ["sped=3"], range(1), None)
