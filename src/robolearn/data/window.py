"""The one gather of frames with their windows, for datasets and the replay buffer alike."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from robolearn.types import Batch, Spec, Window


class WindowGather:
    """Serves batches from columns of frames that lie on one device.

    A frame is addressed by its position; an episode occupies consecutive positions.

    Args:
        spec: The features that are served with a window.
        columns: (N, *shape) by key, all on one device.
        first: Position of the first frame of each frame's episode, int64 (N,).
        last: Position of the last frame of each frame's episode, int64 (N,).
        ring: Positions grow without end, and position p lies in row p modulo N.
        n_final: Frames at the end of every episode that hold an observation only, without action and reward.
    """

    def __init__(
        self,
        spec: Spec,
        columns: Mapping[str, Tensor],
        first: Tensor,
        last: Tensor,
        ring: bool = False,
        n_final: int = 0,
    ) -> None:
        self.spec, self.columns = spec, columns
        self.first, self.last, self.ring, self.n_final = first, last, ring, n_final
        self.device = first.device
        self._offsets: dict[tuple[int, ...], Tensor] = {}

    def __call__(
        self, indices: Tensor, window: Window, *, pin: bool = False, keys: Collection[str] | None = None
    ) -> Batch:
        """The frames at `indices` with their windows; see `robolearn.data.protocols.FrameSource.batch`."""
        indices = self.to_device(indices)
        rows = self._rows(indices)
        first, last = self.first[rows][:, None], self.last[rows][:, None]
        windowed = dict.fromkeys(self.spec.observation, window.observation) | {"action": window.action}
        if window.reward and "next.reward" in self.columns:
            windowed["next.reward"] = window.reward
        found: dict[tuple[tuple[int, ...], int], tuple[Tensor, Tensor]] = {}
        batch: Batch = {}
        for key, offsets in windowed.items():
            if keys is not None and key not in keys:
                continue
            kind = offsets, 0 if key in self.spec.observation else self.n_final
            if kind not in found:
                positions, end = indices[:, None] + self._offset(offsets), last - kind[1]
                pad = (positions < first) | (positions > end)
                found[kind] = self._rows(positions.clamp(first, end)), pad.pin_memory() if pin else pad
            window_rows, pad = found[kind]
            batch |= {key: _gather(self.columns[key], window_rows, pin), f"{key}_is_pad": pad}
        for key, values in self.columns.items():
            if key not in windowed and (keys is None or key in keys):
                batch[key] = _gather(values, rows, pin)
        return batch

    def to_device(self, indices: Tensor) -> Tensor:
        """Indices on the columns' device; the host does not wait for the copy."""
        if indices.device == self.device:
            return indices
        source = indices.pin_memory() if self.device.type == "cuda" else indices
        return source.to(self.device, non_blocking=True)

    def _rows(self, positions: Tensor) -> Tensor:
        return positions % len(self.first) if self.ring else positions

    def _offset(self, offsets: tuple[int, ...]) -> Tensor:
        if offsets not in self._offsets:  # kept, because a copy from ordinary memory makes the host wait
            self._offsets[offsets] = torch.tensor(offsets, dtype=torch.int64).to(self.device)
        return self._offsets[offsets]


def _gather(data: Tensor, rows: Tensor, pin: bool) -> Tensor:
    """``data[rows]`` for rows of any shape, into page-locked memory if `pin`."""
    shape = (*rows.shape, *data.shape[1:])
    if not pin:
        return data.index_select(0, rows.reshape(-1)).view(shape)
    out = torch.empty((rows.numel(), *data.shape[1:]), dtype=data.dtype, pin_memory=True)
    return torch.index_select(data, 0, rows.reshape(-1), out=out).view(shape)
