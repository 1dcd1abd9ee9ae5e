"""The phases of a training: how many updates each has, where its batches come from, and what is collected when."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Protocol

from robolearn.data.batch_stream import BatchStream
from robolearn.training.state import Stateful
from robolearn.types import Batch, NonNegative

Rollout = Callable[[Callable[[], bool]], dict[str, float]]
"""Runs episodes until they end or its argument says stop (RolloutInterrupted); returns scalars to log."""

RunRollout = Callable[[Rollout], None]
"""Has a rollout run to its end, whatever interrupts it, and logs its scalars."""


@dataclass
class Offline:
    """The options of the offline phase.

    Args:
        steps: Its updates.
    """

    steps: NonNegative


class EpisodeCollector(Stateful, Protocol):
    """Collects the episodes of an online phase, as `robolearn.training.online.Collector` does."""

    def collect(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        """Collect what is due before update `step`; returns scalars of what came in."""
        ...

    def finish(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        """Wait for the rollout that still runs after the last update; returns its scalars."""
        ...

    def clear(self) -> None:
        """Forget all episodes: a fresh run starts."""
        ...

    def checkpointed(self, step: int, kept: Sequence[int]) -> None:
        """The state last saved or restored is that of the checkpoint of `step`; those of the steps `kept` exist."""
        ...

    def close(self) -> None:
        """Close the simulators."""
        ...


@dataclass
class Phase:
    """Consecutive updates of a run, on batches of one stream.

    Args:
        start_step: Updates before the phase.
        steps: Updates of the phase.
        stream: Where its batches come from; the run's updates take the batches 0, 1, ... in order.
        batches_per_update: Gradient accumulation.
    """

    start_step: int
    steps: int
    stream: BatchStream
    batches_per_update: int = 1

    @property
    def end_step(self) -> int:
        """Updates done after the phase."""
        return self.start_step + self.steps

    def updates(self, step: int, run_rollout: RunRollout) -> Generator[list[Batch], None, None]:
        """The batches of every update that is left after `step` updates of the run; what is due is collected first."""
        with closing(self.stream.iter_from(step * self.batches_per_update)) as batches:
            for now in range(step, self.end_step):
                self.collect(now, run_rollout)
                yield list(islice(batches, self.batches_per_update))

    def collect(self, step: int, run_rollout: RunRollout) -> None:
        """Collect the episodes that are due before update `step`."""

    def finish(self, step: int, run_rollout: RunRollout) -> None:
        """Take in what is still being collected after the run's last update."""

    def parts(self) -> dict[str, Stateful]:
        """What a checkpoint must hold of the phase."""
        return {}

    def clear(self) -> None:
        """Forget what an earlier run collected."""

    def checkpointed(self, step: int, kept: Sequence[int]) -> None:
        """The state last saved or restored is that of the checkpoint of `step`; those of the steps `kept` exist."""

    def close(self) -> None:
        """Free what the phase holds."""


class OfflinePhase(Phase):
    """Updates on recorded demonstrations; nothing is collected."""


@dataclass(kw_only=True)
class OnlinePhase(Phase):
    """Updates on demonstrations and on the episodes that the policy collects meanwhile.

    Args:
        collector: Collects the episodes, which the phase's stream draws from.
    """

    collector: EpisodeCollector

    def collect(self, step: int, run_rollout: RunRollout) -> None:
        """Collect the episodes that are due before update `step`."""
        run_rollout(partial(self.collector.collect, step))

    def finish(self, step: int, run_rollout: RunRollout) -> None:
        """Wait for the rollout that still runs after the run's last update."""
        run_rollout(partial(self.collector.finish, step))

    def parts(self) -> dict[str, Stateful]:
        """The collector, whose episodes lie in the run's folder."""
        return {"collector": self.collector}

    def clear(self) -> None:
        """Forget what an earlier run collected."""
        self.collector.clear()

    def checkpointed(self, step: int, kept: Sequence[int]) -> None:
        """Episodes that no checkpoint needs any more are removed."""
        self.collector.checkpointed(step, kept)

    def close(self) -> None:
        """Close the simulators."""
        self.collector.close()
