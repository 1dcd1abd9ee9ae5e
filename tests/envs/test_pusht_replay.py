"""People's actions, done again from exactly the states that they began in."""

from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from robolearn.envs import PushT


def block_of(pusht: Any, keypoints: np.ndarray) -> np.ndarray:
    """Position and angle (3,) of the block with these keypoints (8, 2), the closest in the sense of Kabsch (1976)."""
    rest = np.array([tuple(corner) for shape in pusht._block_shapes for corner in shape.get_vertices()])
    one, other = rest - rest.mean(axis=0), keypoints - keypoints.mean(axis=0)
    angle = np.arctan2(np.sum(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]), np.sum(one * other))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.append(keypoints.mean(axis=0) - turn @ rest.mean(axis=0), angle)


@pytest.mark.pusht
@pytest.mark.slow
def test_episodes_of_people_replay_from_their_first_state(shared):
    table = pq.read_table(shared / "data/pusht_keypoints_v30/data/chunk-000/file-000.parquet")
    names = ("episode_index", "observation.environment_state", "observation.state", "action")
    frames = {name: np.array(table[name].to_pylist()) for name in names}
    env = PushT(obs_type="environment_state_agent_pos", render_mode=None).make_vec(1).envs[0]  # type: ignore[union-attr]
    env.reset(seed=0)
    worst = []
    for number in np.linspace(0, frames["episode_index"].max(), 20).astype(int):
        _, keypoints, agent, actions = (column[frames["episode_index"] == number] for column in frames.values())
        keypoints = keypoints.reshape(-1, 8, 2)
        start = np.append(agent[0], block_of(env.unwrapped, keypoints[0].astype(float)))
        seen = [env.reset(options={"reset_to_state": start})[0]]
        for action in actions[:-1]:
            observation, *_ = env.unwrapped.step(action)  # on beyond success, as people did
            seen.append(env.get_wrapper_attr("observation")(observation))
        ours = np.stack([each["observation.environment_state"] for each in seen]).reshape(-1, 8, 2)
        worst.append(np.linalg.norm(ours - keypoints, axis=-1).max())
    assert max(worst) < 1, worst
    print(f"largest distance of a keypoint: {max(worst):.2g} px in {len(worst)} episodes")
