"""A robot, its demonstrations and a policy as a user might write them, small enough for any test."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from robolearn.data import FrameDataset
from robolearn.envs import EnvFactory
from robolearn.errors import UserError
from robolearn.policies.base import Policy, PolicySpec
from robolearn.types import Batch, Feature, Spec, Window

SPEC = Spec({"observation.state": Feature("STATE", (2,))}, Feature("ACTION", (2,)), 10.0)


class Line(gym.Env):
    """A point that should go to the origin."""

    observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action: np.ndarray):
        self.state = (self.state + 0.1 * action).astype(np.float32)
        success = bool(np.abs(self.state).max() < 0.1)
        return self.state, -float(np.abs(self.state).sum()), success, False, {"is_success": success}

    def render(self) -> np.ndarray:
        return np.zeros((32, 32, 3), np.uint8)


gym.register("fakes/Line-v0", entry_point="fakes.line_env:Line")


class LineSimulator(EnvFactory):
    """What an `env` file names."""

    def __init__(self, size: int = 1, obs_type: Literal["state", "noisy"] = "state") -> None:
        if size < 1:
            raise UserError(f"env.size={size}: it must be positive.")
        super().__init__("fakes/Line-v0", 10, 8, {"state": "observation.state"}, package="fakes.line_env")


class LineDataset(FrameDataset):
    """What a `dataset` file names."""

    spec = SPEC
    num_frames = 40
    device = torch.device("cpu")

    def __init__(self, repo_id: str = "fake/line", root: str | None = None) -> None:
        if root is not None and not Path(root).is_dir():
            raise UserError(f"dataset.root={root}: there is no such folder.")
        self.name = repo_id
        ones = torch.ones(2)
        both = {"mean": 0 * ones, "std": ones, "min": -ones, "max": ones}
        self.stats = {"observation.state": both, "action": both}
        self.states = torch.linspace(-1, 1, 40)[:, None].repeat(1, 2)

    def load(self, device: torch.device) -> "LineDataset":
        return self

    def valid_indices(self, drop_n_last_frames: int) -> Tensor:
        return torch.arange(self.num_frames)

    def batch(
        self, indices: Tensor, window: Window, *, pin: bool = False, keys: Collection[str] | None = None
    ) -> Batch:
        states = self.states[indices][:, None]
        pads = torch.zeros(len(indices), 1, dtype=torch.bool)
        return {
            "observation.state": states.repeat(1, len(window.observation), 1),
            "action": -states.repeat(1, len(window.action), 1),
            "action_is_pad": pads.repeat(1, len(window.action)),
            "index": indices,
        }


class Linear(Policy):
    """What a `policy` file names: actions linear in the state."""

    def __init__(self, spec: Spec, n_action_steps: int = 1, gains: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        if n_action_steps < 1:
            raise UserError(f"policy.n_action_steps={n_action_steps}: it must be positive.")
        self.spec = PolicySpec(Window(), n_action_steps, {"STATE": "IDENTITY", "ACTION": "IDENTITY"})
        self.layer = nn.Linear(spec.observation["observation.state"].shape[0], spec.action.shape[0])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.layer(batch["observation.state"]) - batch["action"]).square().mean(), {}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        return self.layer(observation["observation.state"][:, -1:]).repeat(1, self.spec.n_action_steps, 1), {}


FILES = {
    "policy/linear": "# @package _global_\ndefaults: [{override /optimizer: sgd}]\n"
    "policy: {_target_: fakes.line_env.Linear, _partial_: true, n_action_steps: 1}\n",
    "env/line": "# @package _global_\ndefaults: [{override /dataset: line}]\n"
    "env: {_target_: fakes.line_env.LineSimulator, size: 1}\n",
    "dataset/line": "_target_: fakes.line_env.LineDataset\nrepo_id: fake/line\nroot: null\n",
}
"""What the user's own configuration folder holds."""

SMALL = ["policy=linear", "env=line", "offline.steps=4", "batch_size=2", "num_workers=0", "device=cpu"]
SMALL += ["log_freq=2", "eval_freq=4", "save_freq=2", "eval.n_episodes=2", "eval.batch_size=2"]
