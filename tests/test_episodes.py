"""The ground floor stays light: what only stores or describes episodes loads no simulator and no torch."""

import subprocess
import sys

import numpy as np
import pytest

from robolearn.episodes import Episode


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("robolearn.episodes", {"torch", "gymnasium", "robolearn.envs", "robolearn.data"}),
        ("robolearn.types", {"torch", "gymnasium"}),
        ("robolearn.data.lerobot_format.recorder", {"torch", "gymnasium"}),
        ("robolearn.data.replay_buffer", {"gymnasium", "robolearn.envs", "robolearn.rollouts"}),
        ("robolearn.rollouts.video_recorder", {"torch", "gymnasium"}),
    ],
)
def test_importing_it_loads_no(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(sorted({absent!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize(("flags", "success"), [(None, None), ([False, False], False), ([True, False], True)])
def test_success_is_that_of_any_step(flags: list[bool] | None, success: bool | None) -> None:
    successes = None if flags is None else np.array(flags)
    episode = Episode(0, np.zeros((2, 1), np.float32), np.zeros(2), successes, terminated=False, truncated=True)
    assert (episode.success, len(episode)) == (success, 2)
