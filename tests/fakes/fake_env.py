"""A simulator for tests: a point that moves by its action, and everything that can go wrong with one."""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from robolearn.collecting.experts import Demonstrator
from robolearn.envs import EnvFactory


class Reach(gym.Env):
    """Success at the step that brings the point beyond 1; the start depends on the seed alone."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        obs_type="both",
        render_mode="rgb_array",
        crash_in=None,
        crash_at=3,
        reports="is_success",
        image=(6, 8, 3),
        ends=True,
    ):
        if obs_type not in ("both", "state"):
            raise ValueError(f"obs_type {obs_type} is not\nknown")
        self.render_mode, self.crash_in, self.crash_at, self.reports, self.ends = (
            render_mode,
            crash_in,
            crash_at,
            reports,
            ends,
        )
        self.obs_type, self.image = obs_type, tuple(image)
        state = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        pixels = spaces.Dict({"top": spaces.Box(0, 255, self.image, np.uint8)})
        self.observation_space = state if obs_type == "state" else spaces.Dict({"agent_pos": state, "pixels": pixels})
        self.action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.steps_taken = self.resets = 0
        self.position = np.zeros(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if self.crash_in == "reset":
            raise RuntimeError("the arm\nhas no power")
        self.resets += 1
        self.steps = 0
        self.position = self.np_random.uniform(-1, 0.5, 2)
        return self._observe(), {}

    def step(self, action):
        if self.crash_in == "step" and self.steps == self.crash_at:
            raise RuntimeError("joint 3 broke")
        if self.crash_in == "die" and self.steps == self.crash_at:
            os._exit(1)
        if self.crash_in == "slow":
            time.sleep(0.01)
        self.steps += 1
        self.steps_taken += 1
        self.position = self.position + np.asarray(action, np.float64)
        success = bool(self.position[0] > 1)
        info = {self.reports: success} if self.reports else {}
        return self._observe(), float(self.position[0]), success and self.ends, False, info

    def render(self):
        return np.full((33, 41, 3), int(np.clip(self.position[0] * 100 + 100, 0, 255)), np.uint8)

    def _observe(self):
        if self.obs_type == "state":
            return self.position.copy()
        image = np.arange(np.prod(self.image), dtype=np.uint8).reshape(self.image)
        return {"agent_pos": self.position.copy(), "pixels": {"top": image}}


gym.register("fake_env/Reach-v0", entry_point="fakes.fake_env:Reach", max_episode_steps=300)

FEATURES = {"agent_pos": "observation.state", "pixels/top": "observation.images.top"}


def reach_env(**options: Any) -> EnvFactory:
    """What an `env` file with `Reach` builds; options of `Reach` and of `EnvFactory`."""
    kwargs = {key: options.pop(key) for key in list(options) if key in ("crash_in", "crash_at", "reports", "image")}
    options = {"features_map": FEATURES, "package": "fakes.fake_env", "episode_length": 20, **options}
    return EnvFactory("fake_env/Reach-v0", fps=10, kwargs=kwargs, **options)


class Forward:
    """A scripted policy: the first coordinate grows by what the observation says, never by the place in the batch."""

    def __init__(self, speed: float = 0.2) -> None:
        self.speed, self.resets, self.calls = speed, 0, 0

    def reset(self) -> None:
        self.resets += 1

    def __call__(self, observation):
        self.calls += 1
        state = observation["observation.state"]
        actions = np.zeros((len(state), 2), np.float32)
        actions[:, 0] = self.speed + 0.01 * state[:, 1]
        return actions


class Noisy(Forward):
    """Draws its noise from every global generator."""

    def __call__(self, observation):
        import random

        import torch

        n = len(observation["observation.state"])
        noise = torch.rand(n, 2).numpy() + np.random.rand(n, 2) + random.random()
        return (super().__call__(observation) + 0.01 * noise).astype(np.float32)


class Reacher(Demonstrator):
    """Shows how to reach; its speed is drawn for every episode, and too slow a one fails.

    Args:
        env: A `Reach`.
        speed: The largest speed.
        crash: Break at the third step.
    """

    def __init__(self, env: gym.Env, speed: float = 0.2, crash: bool = False) -> None:
        super().__init__(env)
        self.speed, self.crash = speed, crash

    def reset(self, rng: np.random.Generator) -> None:
        self.drawn, self.steps = rng.uniform(0, self.speed), 0

    def act(self) -> np.ndarray:
        self.steps += 1
        if self.crash and self.steps == 3:
            raise ZeroDivisionError("no\nway")
        drift = 0.01 * self.env.unwrapped.position[1]  # type: ignore[attr-defined]
        return np.array([self.drawn, drift], np.float32)
