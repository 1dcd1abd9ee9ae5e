"""CUDA graphs: work on the device that is recorded once and then replayed without Python, launch by launch."""

import logging
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from robolearn.types import Batch

log = logging.getLogger(__name__)

WARMUP = 3
"""Calls that run as usual first: they compile, choose convolutions and make the optimizer's state."""

Scalars = list[dict[str, Tensor]]


class CapturedStep:
    """Calls a function of batches as usual a few times, then captures it and replays the capture.

    The first calls are no rehearsal: they count like those that follow, because a capture runs nothing. Random numbers
    come from the device's default generator, which a graph advances at each replay as far as the function would, so
    that a run may be resumed in the middle. What the function changes (weights, optimizer state) must stay where it is
    in memory; it may neither wait for the device nor look at a value.

    Args:
        function: From batches on the device to scalars on the device, any number of dicts.
        required: A capture that fails ends the run; otherwise the function runs as usual from then on, with a warning.
    """

    def __init__(self, function: Callable[[Sequence[Batch]], Scalars], required: bool = False) -> None:
        self.function, self.required = function, required
        self._key: Hashable = None
        self._forget()
        self._gives_up = False

    def __call__(self, batches: Sequence[Batch], key: Hashable = None) -> Scalars:
        """What the function returns.

        Args:
            batches: On the device.
            key: Where this or the shapes of the batches differ from the last call's, the graph is captured anew.
        """
        if self._gives_up:
            return self.function(batches)
        shapes = tuple((name, value.shape, value.dtype) for batch in batches for name, value in batch.items())
        if (key, shapes) != self._key:
            self._key = key, shapes
            self._forget()
        if self._graph is None and self._calls < WARMUP:
            self._calls += 1
            return self._on_side_stream(batches)
        if self._graph is None:
            try:
                self._capture(batches)
            except RuntimeError as error:
                if self.required:
                    raise
                self._gives_up = True
                self._forget()
                reason = str(error).splitlines()[0]
                log.warning("The update runs without a CUDA graph, several times slower: %s", reason)
                return self.function(batches)
        return self._replay(batches)

    def _forget(self) -> None:
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Batch] = []
        self._names: list[list[str]] = []
        self._values = torch.empty(0)

    def _on_side_stream(self, batches: Sequence[Batch]) -> Scalars:
        # A capture uses a stream of its own, and autograd remembers on which stream it met a weight first.
        stream = torch.cuda.graph.default_capture_stream
        if stream is None:
            stream = torch.cuda.graph.default_capture_stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            scalars = self.function(batches)
        torch.cuda.current_stream().wait_stream(stream)
        return scalars

    def _capture(self, batches: Sequence[Batch]) -> None:
        self._inputs = [{name: value.clone() for name, value in batch.items()} for batch in batches]
        graph = torch.cuda.CUDAGraph()
        # Threads that gather batches may allocate page-locked memory meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            scalars = self.function(self._inputs)
            self._names = [list(each) for each in scalars]
            self._values = torch.stack([value.float() for each in scalars for value in each.values()])
        self._graph = graph

    def _replay(self, batches: Sequence[Batch]) -> Scalars:
        assert self._graph
        for static, batch in zip(self._inputs, batches, strict=True):
            for name, value in batch.items():
                static[name].copy_(value, non_blocking=True)
        self._graph.replay()
        # The next replay overwrites the graph's own.
        values = iter(self._values.clone().unbind())
        return [{name: next(values) for name in names} for names in self._names]
