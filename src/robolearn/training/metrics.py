"""Means of what training computes, kept on the device until somebody wants to read them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from robolearn.distributed.world import World
from robolearn.errors import UserError

T = TypeVar("T")


class TrainMetrics:
    """Sums scalars on the device between two readings, and the time and samples that went by.

    Args:
        device: Where the scalars are.
        world: The processes that train together, whose means are read.
    """

    def __init__(self, device: torch.device, world: World | None = None) -> None:
        self.device = device
        self.world = world or World()
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.samples = 0
        self.waited = 0.0
        self._excluded = 0.0
        self._since: float | None = None
        # How many losses were added up to the first that was not finite; -1: none was.
        self._bad = torch.full((), -1, device=device)
        self._added = 0

    def start(self) -> None:
        """(Re)start the clock; time that went by since the last reading and is not training does not count."""
        self._since = time.perf_counter()

    def time_data(self, updates: Iterator[T]) -> Iterator[T]:
        """The same items; the time until each of them is there is waiting for data, but for what `exclude` holds."""
        while True:
            begin, excluded = time.perf_counter(), self._excluded
            try:
                item = next(updates)
            except StopIteration:
                return
            self.waited += time.perf_counter() - begin - (self._excluded - excluded)
            yield item

    @contextmanager
    def exclude(self) -> Iterator[None]:
        """Time spent in the block is not training and counts nowhere."""
        begin = time.perf_counter()
        yield
        spent = time.perf_counter() - begin
        self._excluded += spent
        if self._since is not None:
            self._since += spent

    def add(self, samples: int, scalars: Sequence[Mapping[str, Tensor]]) -> None:
        """Add an update.

        Args:
            samples: How many it trained on.
            scalars: Of each of its batches, then of the update; detached, on the device.
        """
        self.samples += samples
        for each in scalars:
            self._add(each)

    def _add(self, scalars: Mapping[str, Tensor]) -> None:
        for name, value in scalars.items():
            # Not in place: the first value belongs to the caller.
            self.sums[name] = self.sums[name] + value if name in self.sums else value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1
        if "loss" in scalars:
            self._added += 1
            bad = ~torch.isfinite(scalars["loss"]) & (self._bad < 0)
            self._bad = torch.where(bad, self._added, self._bad)

    def read(self, step: int) -> dict[str, float]:
        """Means since the last reading, samples a second and the share of time spent waiting for data.

        Args:
            step: Updates done, to name the one that went wrong.

        Raises:
            UserError: A loss was not finite.
        """
        self.check_finite(step)
        names = list(self.sums)
        # One transfer for all of them.
        values = (
            self.world.all_reduce_mean(torch.stack([self.sums[n].float() for n in names])).tolist() if names else []
        )
        scalars = {f"train/{n}": v / self.counts[n] for n, v in zip(names, values, strict=True)}
        seconds = time.perf_counter() - (self._since or time.perf_counter())
        if seconds > 0:
            scalars["train/samples_per_s"] = self.world.size * self.samples / seconds
            scalars["train/data_wait"] = self.waited / seconds
        self.sums, self.counts, self.samples, self.waited, self._added = {}, {}, 0, 0.0, 0
        self._bad = torch.full((), -1, device=self.device)
        self.start()
        return scalars

    def check_finite(self, step: int) -> None:
        """Stop a run whose loss was not finite since the last reading.

        Raises:
            UserError: It was; the message names the update.
        """
        bad = self.world.all_reduce_max(int(self._bad))
        if bad >= 0:
            updates = max(1, self.counts.get("grad_norm", 1))
            first = step - updates + 1 + (bad - 1) * updates // max(1, self._added)
            raise UserError(
                f"The loss was not finite at step {first}",
                key="optimizer.lr",
                fix="lower optimizer.lr, set use_amp=false or amp_dtype=bfloat16, and look at train/grad_norm before "
                "it and at the dataset's statistics",
            )

    @staticmethod
    def text(scalars: Mapping[str, float]) -> str:
        """The few numbers a progress bar has room for."""
        parts = [f"loss {scalars['train/loss']:.4f}"] if "train/loss" in scalars else []
        if "train/samples_per_s" in scalars:
            parts.append(f"{scalars['train/samples_per_s']:.0f} samples/s")
            parts.append(f"data wait {scalars['train/data_wait']:.0%}")
        return ", ".join(parts)

    def state_dict(self) -> dict[str, Any]:
        """The sums not read yet, as means over the processes; clocks start anew in a resumed run."""
        return {
            "sums": {name: self.world.all_reduce_mean(value) for name, value in self.sums.items()},
            "counts": dict(self.counts),
            "added": self._added,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums."""
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.counts, self._added = dict(state["counts"]), state["added"]
