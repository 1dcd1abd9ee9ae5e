"""CUDA graphs: work on the device that is recorded once and then replayed without Python, launch by launch."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from robolearn.errors import first_line
from robolearn.types import Batch

log = logging.getLogger(__name__)

Scalars = list[dict[str, Tensor]]
Function = Callable[[Sequence[Batch]], list[dict[str, Tensor]]]


class CudaGraphed:
    """Calls a function of batches as usual a few times, then captures it and replays the capture.

    The first calls are no rehearsal: they count like those that follow, because a capture runs nothing. Random numbers
    come from the device's default generator, which a graph advances at each replay as far as the function would, so
    that a run may be resumed in the middle, and an evaluation seeded. What the function changes (weights, optimizer
    state) must stay where it is in memory; it may neither wait for the device nor look at a value.

    Args:
        function: From batches on the device to float tensors on the device, any number of dicts.
        name: What it is, for the warning.
        required: A capture that fails ends the run; otherwise the function runs as usual from then on, with a warning.
        warmup: Calls that run as usual first: they compile, choose convolutions and make the optimizer's state.
        keep: Graphs kept, of the latest keys and shapes.
    """

    def __init__(
        self, function: Function, name: str, required: bool = False, warmup: int = 3, max_graphs: int = 1
    ) -> None:
        self.function, self.name, self.required = function, name, required
        self.warmup, self.keep = warmup, max_graphs
        self._graphs: OrderedDict[Hashable, _Graph | int] = OrderedDict()  # a number counts the calls before
        self._gives_up = False

    def __call__(self, batches: Sequence[Batch], key: Hashable = None) -> list[dict[str, Tensor]]:
        """What the function returns.

        Args:
            batches: On the device.
            key: Where this or the shapes of the batches differ from those of all graphs kept, another one is captured.
        """
        if self._gives_up:
            return self.function(batches)
        shapes = tuple((name, value.shape, value.dtype) for batch in batches for name, value in batch.items())
        key = key, shapes
        graph = self._graphs.setdefault(key, 0)
        self._graphs.move_to_end(key)
        while len(self._graphs) > self.keep:
            self._graphs.popitem(last=False)
        if isinstance(graph, int) and graph < self.warmup:
            self._graphs[key] = graph + 1
            return _on_side_stream(self.function, batches)
        if isinstance(graph, int):
            try:
                graph = self._graphs[key] = _capture(self.function, batches)
            except RuntimeError as error:
                if self.required:
                    raise
                self._gives_up = True
                self._graphs.clear()
                # What a function did wrong is hidden behind what that did to the capture.
                cause = error.__context__ if isinstance(error.__context__, RuntimeError) else error
                reason = first_line(cause)
                log.warning("%s runs without a CUDA graph, several times slower: %s", self.name, reason)
                return self.function(batches)
        return graph(batches)


class _Graph:
    """A captured function: where it reads its batches, and the one vector that holds all its results."""

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: list[Batch], results: list[dict[str, Tensor]]) -> None:
        self.graph, self.inputs = graph, inputs
        self.shapes = [{name: value.shape for name, value in each.items()} for each in results]
        self.sizes = [value.numel() for each in results for value in each.values()]
        self.flat = torch.cat([value.float().flatten() for each in results for value in each.values()])

    def __call__(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        for static, batch in zip(self.inputs, batches, strict=True):
            for name, value in batch.items():
                static[name].copy_(value, non_blocking=True)
        self.graph.replay()
        # The next replay overwrites the graph's own.
        values = iter(self.flat.clone().split(self.sizes))
        return [{name: next(values).view(shape) for name, shape in each.items()} for each in self.shapes]


def _on_side_stream(function: Function, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    # A capture uses a stream of its own, and autograd remembers on which stream it met a weight first.
    stream = torch.cuda.graph.default_capture_stream
    if stream is None:
        stream = torch.cuda.graph.default_capture_stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        results = function(batches)
    torch.cuda.current_stream().wait_stream(stream)
    return results


def _capture(function: Function, batches: Sequence[Batch]) -> _Graph:
    inputs = [{name: value.clone() for name, value in batch.items()} for batch in batches]
    graph = torch.cuda.CUDAGraph()
    # Threads that gather batches may allocate page-locked memory meanwhile.
    with _put_back(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
        return _Graph(graph, inputs, function(inputs))


@contextmanager
def _put_back() -> Iterator[None]:
    """After a capture that failed: the stream that was current, and a generator that does not believe it goes on."""
    stream = torch.cuda.current_stream()
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    state = generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(state)
        raise
