import subprocess
import sys

import numpy as np
import pytest
import shapely

from robolearn.demonstrators import PushTDemonstrator
from robolearn.demonstrators.detour import shortest_way
from robolearn.demonstrators.pushing import Sandbox, State
from robolearn.demonstrators.pusht import ride
from robolearn.envs import PushT
from robolearn.errors import UserError

FIELD = (0.0, 0.0, 100.0, 100.0)


@pytest.fixture(scope="module")
def pusht():
    env = PushT(obs_type="state", render_mode=None).make(1)
    yield env.envs[0]  # type: ignore[union-attr]
    env.close()


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
            return np.array(actions), info["success"]


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
    sandbox = Sandbox(pusht.unwrapped)
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


def test_way_goes_around():
    wall = shapely.box(40, 20, 60, 80)
    way = shortest_way((10, 50), (90, 50), wall, 5, FIELD)
    assert way is not None
    assert way[-1] == (90, 50)
    line = shapely.LineString([(10, 50), *way])
    assert line.distance(wall) == pytest.approx(5, abs=0.5)
    # Over the corners (35, 15) and (65, 15), or their mirror images.
    assert line.length == pytest.approx(30 + 2 * np.hypot(25, 35), abs=1)


def test_way_from_too_close_leaves_first_and_none_is_none():
    wall = shapely.box(40, 20, 60, 80)
    way = shortest_way((39, 50), (10, 50), wall, 5, FIELD)
    assert way is not None
    assert way[0] == pytest.approx((35, 50))
    assert shortest_way((10, 50), (90, 50), shapely.box(40, -10, 60, 110), 5, FIELD) is None


def test_ride_keeps_its_speed_and_arrives():
    points = np.array([(0.0, 0.0), *ride([(0.0, 0.0), (100.0, 0.0), (100.0, 50.0)], speed=18, end=0)])
    assert tuple(points[-1]) == (100.0, 50.0)
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert lengths.max() <= 18 + 1e-9
    assert lengths[-1] < 8


def test_demonstrators_start_without_torch():
    code = "import sys, robolearn.demonstrators; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
