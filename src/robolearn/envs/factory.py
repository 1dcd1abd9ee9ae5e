"""The recipe of a simulator: what conf/env describes."""

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces

from robolearn.envs.dependencies import display_error_message, import_package, is_display_error, missing
from robolearn.envs.vector import VectorEnv, make_vector_env
from robolearn.envs.wrappers import FlattenToDatasetKeys, FreezeAfterEpisodeEnd, SuccessWrapper
from robolearn.errors import UserError, closest_match, describe_exception
from robolearn.system.workers import limit_threads
from robolearn.types import Feature, Fps, Positive, Spec, kind_of

log = logging.getLogger(__name__)

DEFAULT_RENDER_SETTINGS = {"render_quality": "full"}
"""Of datasets and checkpoints that record none, as LeRobot's."""


class EnvFactory:
    """Makes vectors of one gymnasium environment, whose observations carry dataset keys.

    Nothing is imported or built before `spec` or `make` is used.

    Args:
        id: gymnasium's id, for example ``gym_pusht/PushT-v0``.
        fps: Control steps a second of simulated time; also the frame rate of videos.
        episode_length: Steps after which an episode is cut off (truncated).
        features_map: Dataset key of each of the simulator's observation keys (nested ones joined by ``/``); an
            observation that is no dict is called ``pixels`` or ``state``; null leaves one out.
        package: Python package whose import registers the id.
        obs_type: Given to the environment unless null.
        render_mode: Given to the environment; ``rgb_array`` for videos, null for none.
        success_key: The info's key that says success at a step; null for an environment that knows none.
        kwargs: Further arguments of the environment.
        environ: Environment variables that the simulator needs, where they are not already set.
        instruction: The task in natural language, for policies that use language and for datasets.

    Raises:
        UserError: Values contradict each other.
    """

    id_key = "env.id"
    entry_point: str | None = None
    """``module:Class`` to open in place of the registered one, whose faults it fixes."""
    fork_safe = True
    """Whether the processes of a vector may be forked from one that has imported the simulator."""

    def __init__(
        self,
        id: str,
        fps: Fps,
        episode_length: Positive,
        features_map: Mapping[str, str | None],
        package: str | None = None,
        obs_type: str | None = None,
        render_mode: str | None = "rgb_array",
        success_key: str | None = "is_success",
        kwargs: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        instruction: str | None = None,
    ) -> None:
        self.id = id
        self.fps = float(fps)
        self.episode_length = episode_length
        self.features_map = dict(features_map)
        self.package = package
        self.render_mode = render_mode
        self.success_key = success_key
        self.environ = dict(environ or {})
        self.instruction = instruction
        self.kwargs = dict(kwargs or {}) | {"render_mode": render_mode, "max_episode_steps": episode_length}
        if obs_type is not None:
            self.kwargs["obs_type"] = obs_type

    @property
    def can_render(self) -> bool:
        """Whether frames for videos can be had."""
        return self.render_mode == "rgb_array"

    @property
    def render_settings(self) -> dict[str, Any]:
        """What changes the observations besides their shapes; recorded with datasets and checkpoints."""
        return {}

    @functools.cached_property
    def spec(self) -> Spec:
        """What is observed and commanded; opens the simulator once, without a step.

        Raises:
            UserError: The simulator can't be opened, or its spaces can't be recorded.
        """
        env = self.env_fn()()
        try:
            action = env.action_space
            if not isinstance(action, spaces.Box) or len(action.shape) != 1:
                raise UserError(
                    f"{self.id_key}={self.id} has actions {action}; only vectors (a Box of one axis) can be learned.",
                    key=self.id_key,
                )
            real = env.metadata.get("render_fps")
            if real and real != self.fps:
                log.warning("env.fps=%g, but %s says that it runs at %g steps a second.", self.fps, self.id, real)
            observation = {
                key: Feature(kind_of(key), tuple(space.shape))
                for key, space in env.observation_space.items()  # type: ignore[attr-defined]
            }
        finally:
            env.close()
        return Spec(observation, Feature("ACTION", tuple(action.shape)), self.fps, self.render_settings)

    def make_vec(self, num_envs: int, use_async: bool = False) -> VectorEnv:
        """A vector of simulators; seed every reset, close it after use.

        Observations: images uint8 (N, C, H, W), all else float32 (N, ...). An environment whose episode has ended
        is not stepped until its next reset. The info of a step holds ``success`` (N,) if the simulator knows it.

        Args:
            num_envs: N.
            use_async: Give each simulator a process of its own.

        Raises:
            UserError: The simulator can't be opened.
        """
        return make_vector_env(
            [self.env_fn()] * num_envs, use_async, preload=self.preload_modules() if use_async else ()
        )

    def describe(self) -> dict[str, Any]:
        """Plain values for records."""
        return {"id": self.id, "fps": self.fps, "features_map": self.features_map, **self.kwargs}

    def env_fn(self) -> functools.partial:
        """What opens one simulator with its adapters, in whatever process calls it.

        Raises:
            UserError: When called: the simulator can't be opened.
        """
        # Plain values only: a worker that unpickles this must not import torch along with a Spec.
        return functools.partial(
            open_simulator,
            self.id,
            self.package,
            self.features_map,
            self.success_key,
            self.kwargs,
            self.environ,
            self.id_key,
            self.entry_point,
        )

    def preload_modules(self) -> list[str]:
        """What a fork server imports once for all processes that open this simulator.

        Raises:
            UserError: The package is not installed.
        """
        if not self.fork_safe:
            return []
        import_package(self.package, self.environ)
        registered = gym.registry[self.id].entry_point if self.id in gym.registry else None
        entry = self.entry_point or registered
        modules = [self.package] if self.package else []
        return [*modules, entry.split(":")[0]] if isinstance(entry, str) else modules


def open_simulator(
    id: str,
    package: str | None,
    features_map: Mapping[str, str | None],
    success_key: str | None,
    kwargs: Mapping[str, Any],
    environ: Mapping[str, str],
    id_key: str,
    entry_point: str | None,
) -> gym.Env:
    """Open one simulator with its adapters; also runs in worker processes.

    Raises:
        UserError: A package, a library or the id is missing, or the environment refuses its arguments.
    """
    import_package(package, environ)
    try:
        made = dataclasses.replace(gym.spec(id), entry_point=entry_point) if entry_point else id
        env = gym.make(made, disable_env_checker=True, **kwargs)
    except gym.error.UnregisteredEnv as error:
        raise UserError(_unknown_id(id, id_key), key=id_key) from error
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise UserError(missing(error, package), key="env.package") from error
    except UserError:
        raise
    except Exception as error:  # the environment's own constructor may raise anything
        if is_display_error(error):
            raise UserError(display_error_message(error), key="MUJOCO_GL") from error
        reason = describe_exception(error)
        raise UserError(
            f"{id_key}={id} can't be opened with {_listed(kwargs)}: {reason}; check the keys of env.", key=id_key
        ) from error
    limit_threads()
    return FreezeAfterEpisodeEnd(SuccessWrapper(FlattenToDatasetKeys(env, features_map), success_key), id)


def check_same_spec(dataset: Spec, env: Spec) -> None:
    """See that a policy of this dataset can act in this simulator.

    Args:
        dataset: What the policy will be trained on.
        env: Of the simulator; it may have further observations than the dataset.

    Raises:
        UserError: An observation is missing, or a shape or the number of actions differs.
    """
    faults = []
    for key, feature in dataset.observation.items():
        if key not in env.observation:
            faults.append(f"the simulator does not give {key} {feature.shape}")
        elif env.observation[key].shape != feature.shape:
            faults.append(
                f"{key} has shape {feature.shape} in the dataset and {env.observation[key].shape} in the simulator"
            )
    if dataset.action.shape != env.action.shape:
        faults.append(f"action has shape {dataset.action.shape} in the dataset and {env.action.shape} in the simulator")
    if faults:
        raise UserError(f"Dataset and simulator do not fit: {'; '.join(faults)}; {_remedy(dataset, env)}.", key="env")
    if dataset.fps != env.fps:
        log.warning("The dataset was recorded at %g fps, the simulator runs at %g (env.fps).", dataset.fps, env.fps)
    recorded = DEFAULT_RENDER_SETTINGS | dataset.settings
    for key in recorded.keys() & env.settings.keys():
        if recorded[key] != env.settings[key]:
            log.warning(
                "The dataset was recorded with %s=%s, the simulator runs with %s; set env.%s=%s to see the same.",
                *(key, recorded[key], env.settings[key], key, recorded[key]),
            )


def _remedy(dataset: Spec, env: Spec) -> str:
    missing = [feature.kind for key, feature in dataset.observation.items() if key not in env.observation]
    if dataset.action.shape != env.action.shape or not missing:
        return "choose the dataset and the env of one robot (dataset=, dataset.root=, env=)"
    images, environment = bool(dataset.of_kind("VISUAL")), bool(dataset.of_kind("ENV"))
    if environment and not images:
        obs_type = "environment_state_agent_pos"
    elif images and not environment:
        obs_type = "pixels_agent_pos" if dataset.of_kind("STATE") else "pixels"
    else:
        return (
            "set env.obs_type or env.features_map so that it does, or choose another dataset (dataset=, dataset.root=)"
        )
    other = " such as dataset=pusht_keypoints" if env.of_kind("ENV") else ""
    return (
        f"set env.obs_type={obs_type}, or choose a dataset recorded with what the simulator gives{other} "
        "(dataset=, dataset.root=)"
    )


def _unknown_id(id: str, id_key: str) -> str:
    nearest = closest_match(id, sorted(gym.registry), cutoff=0.5)
    hint = f"did you mean {_value(nearest, id_key)}?" if nearest else "is env.package the package that registers it?"
    return f"{id_key}={_value(id, id_key)}: gymnasium knows no {id} ({hint})"


def _value(id: str, id_key: str) -> str:
    """What the user types for an id: all of it, or what follows the package's name."""
    return id if id_key == "env.id" else id.rpartition("/")[2]


def _listed(kwargs: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in kwargs.items())
