"""Collecting: episodes of a demonstrator or of a policy, one after another, into a dataset that stays valid."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
from tqdm import tqdm

from robolearn.collecting.demonstration_workers import EpisodeResult, Noise
from robolearn.data.lerobot_format.recorder import Recorder
from robolearn.data.lerobot_format.writer import DatasetWriter
from robolearn.envs.factory import EnvFactory
from robolearn.episodes import Actor, Episode, Observation, RolloutInterrupted
from robolearn.errors import UserError
from robolearn.rng import isolated_rng
from robolearn.rollouts.rollout import rollout
from robolearn.runs.run import flatten
from robolearn.system.files import is_full

log = logging.getLogger(__name__)

COMMIT_S = 10.0
"""Seconds of work that a killed process may lose; more where a commit takes long, so that it stays a twentieth."""

RECIPE = "collection"
"""The key of ``info.json`` that says how a dataset was collected."""


class EpisodeSource(Protocol):
    """What episodes come from."""

    def attempts(self, seed: int, wanted: Callable[[], int], stop: Callable[[], bool]) -> Iterator[EpisodeResult]:
        """The episodes of `seed`, ``seed + 1`` and so on, in that order; ends when `stop` says so.

        Args:
            seed: Of the first one.
            wanted: How many more are needed.
            stop: Asked several times a second.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What a dataset holds in the end."""

    episodes: int
    frames: int
    failures: int
    complete: bool


@contextmanager
def folder_of_its_own(out: Path, recipe: Mapping[str, Any]) -> Iterator[None]:
    """The folder of a dataset that this recipe makes, new or to be continued; locked while open.

    A new one in which nothing was written is removed again.

    Raises:
        UserError: It holds something else, or another process works in it.
    """
    check_folder(out, recipe)
    new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"Another process collects into {out}; wait for it or give another out=.", key="out") from None
    try:
        yield
    finally:
        lock.release()
        (out / ".lock").unlink(missing_ok=True)
        if new:
            with suppress(OSError):
                out.rmdir()


def check_folder(out: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse a folder that holds anything but a dataset of this recipe; writes nothing.

    Raises:
        UserError: It does.
    """
    from robolearn.data.lerobot_format.meta import read_json

    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file; give a folder.", key="out")
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    info = out / "meta" / "info.json"
    if not info.is_file():
        # What a process that was killed before its first commit may have left.
        if foreign := [name for name in names if name not in ("meta", "data", "videos")]:
            raise UserError(
                f"out={out} holds other files ({foreign[0]}) and no dataset; give a folder of its own.", key="out"
            )
        return
    found = read_json(info).get(RECIPE)
    if not isinstance(found, dict):
        raise UserError(
            f"out={out} holds a dataset that robolearn-collect has not made; give another folder.", key="out"
        )
    old, new = flatten(found), flatten(recipe)
    keys = [key for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key) and key != "robolearn"]
    if keys:
        shown = "; ".join(f"{key} was {old.get(key, 'absent')}, now {new.get(key, 'absent')}" for key in keys[:3])
        raise UserError(
            f"out={out} holds a dataset that was collected in another way ({shown}); give another folder, or the same "
            "keys to resume it.",
            key="out",
        )


class Collection:
    """Fills a dataset with episodes, from where it stands.

    Args:
        writer: Of the dataset.
        seed: Of the first episode.
        episodes: How many to keep.
        keep_failures: Whether failed ones are kept too.
        max_consecutive_failures: After how many failures in a row to give up.
    """

    def __init__(
        self, writer: DatasetWriter, seed: int, episodes: int, keep_failures: bool, max_consecutive_failures: int
    ) -> None:
        self.writer, self.seed, self.episodes = writer, seed, episodes
        self.keep_failures, self.max_consecutive_failures = keep_failures, max_consecutive_failures
        # Failures leave gaps among the seeds of those that were kept, so that nothing else need be remembered.
        self.next_seed = int(writer.rows[-1]["seed"]) + 1 if writer.rows else seed
        self.failures = 0 if keep_failures else self.next_seed - seed - len(writer.rows)
        self._consecutive_failures = 0
        self._due = time.monotonic() + COMMIT_S

    @property
    def missing(self) -> int:
        """Episodes still to be recorded."""
        return self.episodes - self.writer.num_episodes

    def run(self, source: EpisodeSource, stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Record what is missing; what was recorded is on disk however this ends.

        Raises:
            UserError: The disk is full, a simulator failed, or nothing but failures came.
        """
        with _CollectionProgress(self) as bar:
            try:
                for attempt in source.attempts(self.next_seed, lambda: self.missing, stop):
                    self._add(attempt)
                    bar.show(attempt)
                    if time.monotonic() > self._due:
                        self._commit()
                    if not self.missing:
                        break
            except BaseException:
                self._save_what_there_is()
                raise
            self._commit()
        return Outcome(self.writer.num_episodes, self.writer.num_frames, self.failures, not self.missing)

    def _add(self, attempt: EpisodeResult) -> None:
        self.next_seed = attempt.seed + 1
        failed = attempt.success is False
        self.failures += failed
        self._consecutive_failures = self._consecutive_failures + 1 if failed else 0
        if attempt.record is not None:
            self.writer.add(attempt.record)
        elif self._consecutive_failures >= self.max_consecutive_failures:
            raise UserError(
                f"{self.max_consecutive_failures} episodes in a row failed, so collecting stops; see what they do with "
                "keep_failures=true, or give a larger patience=.",
                key="patience",
            )

    def _commit(self) -> None:
        try:
            seconds = self.writer.commit()
        except Exception as error:
            if is_full(error, self.writer.root):
                raise UserError(
                    f"The disk is full: {len(self.writer.rows)} of {self.episodes} episodes are in {self.writer.root} "
                    "and intact; make room and give the same command, which resumes from there.",
                    key="out",
                ) from error
            raise
        self._due = time.monotonic() + max(COMMIT_S, 20 * seconds)

    def _save_what_there_is(self) -> None:
        try:
            self.writer.commit()
        except Exception as error:  # what stopped the collection is what the user is to see
            log.debug("The last episodes could not be written", exc_info=error)


class _CollectionProgress:
    """Episodes that were kept, frames a second, and how many failed."""

    def __init__(self, collection: Collection) -> None:
        self.collection, self.frames, self.start = collection, 0, time.monotonic()

    def __enter__(self) -> "_CollectionProgress":
        done = self.collection.writer.num_episodes
        self._bar = tqdm(
            total=self.collection.episodes, initial=done, desc="collecting", unit="episode", disable=None,
            dynamic_ncols=True,
        )  # fmt: skip
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()

    def show(self, attempt: EpisodeResult) -> None:
        """Count an episode."""
        self.frames += attempt.length
        rate = self.frames / max(time.monotonic() - self.start, 1e-9)
        failures = self.collection.failures
        self._bar.set_postfix_str(f"{rate:.0f} frames/s, {failures} failed" if failures else f"{rate:.0f} frames/s")
        self._bar.update(self.collection.writer.num_episodes - self._bar.n)


class PolicyEpisodeSource:
    """Episodes of a policy, in batches side by side in one process.

    What a policy draws depends on the seeds of its batch: the same `batch_size` gives the same episodes, whatever
    else is changed and wherever a collection was interrupted.

    Args:
        simulator: Where.
        agent: The policy, ready to act.
        recorder: Turns episodes into records.
        batch_size: VectorEnv side by side.
        first: Seed of the first batch.
        use_async_envs: Give each simulator a process of its own.
        noise: Standard deviation of the noise that is added to actions.
        keep_failures: Whether failed episodes are recorded too.
    """

    def __init__(
        self,
        simulator: EnvFactory,
        agent: Actor,
        recorder: Recorder,
        batch_size: int,
        first: int,
        use_async_envs: bool = False,
        noise: float = 0.0,
        keep_failures: bool = False,
    ) -> None:
        self.simulator, self.agent, self.recorder = simulator, agent, recorder
        self.batch_size, self.first, self.use_async_envs = batch_size, first, use_async_envs
        self.noise, self.keep_failures = noise, keep_failures

    def attempts(self, seed: int, wanted: Callable[[], int], stop: Callable[[], bool]) -> Iterator[EpisodeResult]:
        """As `EpisodeSource` has it."""
        start = seed - (seed - self.first) % self.batch_size  # batches are always cut at the same seeds
        env = self.simulator.make_vec(self.batch_size, self.use_async_envs)
        try:
            while not stop():
                seeds = range(start, start + self.batch_size)
                actor = _NoisyActor(self.agent, [Noise(self.noise, env.single_action_space, each) for each in seeds])
                try:
                    with isolated_rng(start):
                        episodes = rollout(env, actor, seeds, keep_observations=True, stop=stop)
                except RolloutInterrupted:
                    return
                for env_index, episode in enumerate(episodes):
                    if episode.seed >= seed:
                        yield self._attempt(episode, actor.clean_of(env_index, len(episode)))
                start += self.batch_size
        finally:
            env.close()

    def _attempt(self, episode: Episode, clean: np.ndarray) -> EpisodeResult:
        kept = self.keep_failures or episode.success is not False
        record = self.recorder(episode, clean) if kept else None
        return EpisodeResult(episode.seed, len(episode), episode.success, record)


class _NoisyActor:
    """An actor with noise on its actions, which remembers what they were without."""

    def __init__(self, agent: Actor, noises: list[Noise]) -> None:
        self.agent, self.noises = agent, noises
        self.clean: list[np.ndarray] = []

    def reset(self) -> None:
        self.agent.reset()
        self.clean = []

    def __call__(self, observation: Observation) -> np.ndarray:
        actions = self.agent(observation)
        self.clean.append(actions)
        return np.stack([noise(action) for noise, action in zip(self.noises, actions, strict=True)])

    def clean_of(self, env_index: int, length: int) -> np.ndarray:
        """The actions (T, A) of an environment before noise."""
        return np.stack([actions[env_index] for actions in self.clean[:length]]).astype(np.float32)
