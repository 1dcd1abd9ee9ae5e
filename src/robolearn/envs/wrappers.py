"""Between gymnasium and the toolkit: every quirk of gymnasium and of its versions stays in this module.

Nothing here imports torch, so that the worker processes of asynchronous environments start fast and stay small.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from robolearn.episodes import Observation
from robolearn.errors import UserError, describe_exception
from robolearn.types import kind_of

log = logging.getLogger(__name__)

CHANNELS = (1, 3, 4)


class FlattenToDatasetKeys(gym.ObservationWrapper):
    """Observations as one flat dict by dataset key: images uint8 (C, H, W), all else float32.

    A nested dict's keys are joined by ``/``. An observation that is no dict is called ``pixels`` if it is an image,
    ``state`` otherwise.

    Args:
        env: The simulator.
        features_map: Dataset key of each of the simulator's keys, None for one to leave out; names of keys the
            simulator does not give are ignored, so that one map serves every obs_type.

    Raises:
        UserError: A key is not in the map, two have one name, or a space can't be recorded.
    """

    def __init__(self, env: gym.Env, features_map: Mapping[str, str | None]) -> None:
        super().__init__(env)
        self._keys: dict[str, str] = {}
        self._channel_last: set[str] = set()
        canonical: dict[str, spaces.Box] = {}
        for name, space in _leaves(env.observation_space, env.observation_space):
            key = _dataset_key(name, features_map)
            if key is None:
                continue
            if key in canonical:
                raise UserError(
                    f"env.features_map gives {key} twice, for {self._keys[key]!r} and {name!r}.", key="env.features_map"
                )
            self._keys[key] = name
            canonical[key] = self._canonical_space(name, key, space)
        self._spaces = canonical
        self.observation_space = spaces.Dict(dict(canonical))

    def _canonical_space(self, name: str, key: str, space: spaces.Space) -> spaces.Box:
        if not isinstance(space, spaces.Box):
            raise UserError(
                f"The simulator's observation {name!r} is a {type(space).__name__}, which datasets can't hold; "
                f"map it to null in env.features_map or give a Box instead.",
                key="env.features_map",
            )
        if kind_of(key) != "VISUAL":
            shape = space.shape or (1,)
            return spaces.Box(-np.inf, np.inf, shape, np.float32)
        if space.dtype != np.uint8 or len(space.shape) != 3:
            raise UserError(
                f"env.features_map calls {name!r} an image ({key}), but the simulator gives {space.dtype} of shape "
                f"{space.shape} instead of uint8 (height, width, channels).",
                key="env.features_map",
            )
        height, width, channels = space.shape
        if channels in CHANNELS:
            self._channel_last.add(key)
            return spaces.Box(0, 255, (channels, height, width), np.uint8)
        return spaces.Box(0, 255, space.shape, np.uint8)

    def observation(self, observation: Any) -> Observation:
        """The observation by dataset key."""
        leaves = dict(_leaves(observation, self.env.observation_space))
        return {key: self._convert(key, leaves[name]) for key, name in self._keys.items()}

    def _convert(self, key: str, value: Any) -> np.ndarray:
        space = self._spaces[key]
        if key in self._channel_last:
            value = np.moveaxis(np.asarray(value), -1, 0)
        value = np.ascontiguousarray(value, dtype=space.dtype).reshape(space.shape)
        # Some simulators return views of buffers that the next step overwrites.
        return value.copy() if value.base is not None else value


class SuccessWrapper(gym.Wrapper):
    """Reduces the info to ``success``, once it is a bool of every step, so that vectors of it stay cheap.

    Args:
        env: The simulator.
        key: What its info calls success; None where it knows none.
    """

    def __init__(self, env: gym.Env, key: str | None) -> None:
        super().__init__(env)
        self._key = key

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Reset; the info is empty, since an episode of no steps is not yet judged."""
        observation, _ = self.env.reset(seed=seed, options=options)
        return observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Step; the info holds ``success`` or nothing."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self._key is None:
            return observation, float(reward), bool(terminated), bool(truncated), {}
        if self._key not in info:
            raise UserError(
                f"The simulator reports no {self._key!r} in its info (it has: {', '.join(info) or 'nothing'}); "
                "set env.success_key to the one that says success, or to null.",
                key="env.success_key",
            )
        success = bool(info[self._key])
        return observation, float(reward), bool(terminated), bool(truncated), {"success": success}


class FreezeAfterEpisodeEnd(gym.Wrapper):
    """One environment of a vector: after its episode's end the simulator is not stepped until the next reset.

    Vectors step all of their environments at once. A finished one returns its last observation, reward 0 and its
    last flags. An idle one, which has no episode, does the same from its reset on, with observations of zeros.
    A crash inside of the simulator is reported with the simulator's name, the episode's seed and the step.

    Attributes:
        idle: Set before a reset: this environment runs no episode.
        recording: Whether `frame` renders.
    """

    def __init__(self, env: gym.Env, name: str) -> None:
        super().__init__(env)
        self.idle = False
        self.recording = False
        self._name = name
        self._seed: int | None = None
        self._steps = 0
        self._last: Any = None
        self._flags = (False, False)
        self._fresh = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Start the episode of `seed`, unless the environment is idle."""
        self._seed, self._steps, self._flags, self._fresh = seed, 0, (False, False), not self.idle
        if self.idle:
            self._flags = (False, True)
            self._last = {key: np.zeros(s.shape, s.dtype) for key, s in self.observation_space.items()}  # type: ignore[attr-defined]
            return self._last, {}
        self._last, info = self._guarded("reset", lambda: self.env.reset(seed=seed, options=options))
        return self._last, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """Step the simulator, or repeat the last observation when the episode is over."""
        self._fresh = not any(self._flags)
        if not self._fresh:
            terminated, truncated = self._flags
            return self._last, 0.0, terminated, truncated, {}
        self._steps += 1
        self._last, reward, terminated, truncated, info = self._guarded("step", lambda: self.env.step(action))
        self._flags = (terminated, truncated)
        return self._last, reward, terminated, truncated, info

    def frame(self) -> np.ndarray | None:
        """What the last reset or step led to, rendered, (H, W, 3) uint8; None if not recording or if it did nothing."""
        if not (self.recording and self._fresh):
            return None
        return self._guarded("render", self.env.render)

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            # The one broad except: the simulator is not our code, and in a worker process its exception may not
            # even be picklable. The cause stays chained, the source line is named.
            log.debug("The simulator failed", exc_info=True)
            where = f"in {what} {self._steps}" if what == "step" else f"in {what}"
            reason = describe_exception(error)
            raise UserError(
                f"The simulator {self._name} failed {where} of the episode with seed {self._seed}: {reason}.", key="env"
            ) from error


def _leaves(value: Any, space: spaces.Space, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of an observation of a space; the space itself, given as its value, has its parts."""
    if isinstance(space, spaces.Dict):
        for name, child in space.items():
            yield from _leaves(value[name], child, f"{prefix}{name}/")
    else:
        yield prefix[:-1] or _bare_name(space), value


def _bare_name(space: spaces.Space) -> str:
    return "pixels" if space.dtype == np.uint8 and len(space.shape or ()) == 3 else "state"


def _dataset_key(name: str, features_map: Mapping[str, str | None]) -> str | None:
    if name not in features_map:
        raise UserError(
            f"The simulator's observation has {name!r}, which env.features_map does not name (it has: "
            f"{', '.join(features_map)}); give it a key such as observation.{name.replace('/', '.')}, or null to "
            "leave it out.",
            key="env.features_map",
        )
    key = features_map[name]
    if key is not None and not key.startswith("observation."):
        raise UserError(
            f"env.features_map.{name}={key} must start with 'observation.', as dataset keys do.",
            key=f"env.features_map.{name}",
        )
    return key
