"""Episodes collected during training: the newest frames, served by index as a dataset's are."""

import os
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes
from torch import Tensor

from robolearn.data.protocols import FrameSource
from robolearn.data.video.placement import choose_tier
from robolearn.data.window import WindowGather
from robolearn.episodes import Episode
from robolearn.errors import UserError, one_line
from robolearn.system.files import disk_full_as_user_error, write_bytes
from robolearn.types import Batch, Feature, Spec, Window


@dataclass(frozen=True)
class StoredEpisode:
    """An episode in the buffer: its index, the position of its first frame and its steps."""

    index: int
    first: int
    steps: int

    @property
    def frames(self) -> int:
        """One more than its steps: the last frame holds what the last action led to."""
        return self.steps + 1


class ReplayBuffer(FrameSource):
    """Whole episodes, first in, first out, in a ring of frames and as a file each.

    The ring serves batches: it lies on the device if it fits there, otherwise in a file mapped into memory. A restarted
    run fills the ring from the episodes' files. They stay until `prune` removes them, so that neither a kill nor an
    eviction deletes what a checkpoint refers to.

    Frames are counted from the first ever added; the frame at position p lies in row p modulo `capacity`.

    Args:
        folder: Of the files; created if missing.
        spec: Observations and action.
        capacity: Frames of the ring. An episode of T steps takes T + 1: the last one holds what it ended in.
        device: Where batches are wanted.
        drop_n_last_frames: Frames at the end of every episode that are not drawn.

    Raises:
        UserError: The folder can't be written.
    """

    def __init__(
        self, folder: Path, spec: Spec, capacity: int, device: torch.device, drop_n_last_frames: int = 0
    ) -> None:
        self.folder, self.spec, self.capacity = folder, spec, capacity
        self.drop_n_last_frames = drop_n_last_frames
        self.episodes: deque[StoredEpisode] = deque()
        self.next_index = 0
        self.frames = 0
        self.num_sampleable = 0
        self._end = 0
        self._cumulative: tuple[np.ndarray, np.ndarray] | None = None
        with disk_full_as_user_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        columns = {key: (_dtype(feature), feature.shape) for key, feature in spec.observation.items()}
        columns |= {"action": (torch.float32, spec.action.shape), "next.reward": (torch.float32, ())}
        columns |= {f"next.{flag}": (torch.bool, ()) for flag in ("done", "success", "terminated")}
        columns |= dict.fromkeys(("index", "episode_index", "frame_index", "task_index"), (torch.int64, ()))
        columns |= {"timestamp": (torch.float32, ()), "_first": (torch.int64, ()), "_last": (torch.int64, ())}
        size = sum(_bytes(capacity, dtype, shape) for dtype, shape in columns.values())
        # "auto" alone asks for a share of what is free; a processor's own memory is not spent on what can be mapped.
        tier = choose_tier("auto", size, device, None, 0) if device.type != "cpu" else "disk"
        home = device if tier == "gpu" else torch.device("cpu")
        self._ring = {key: self._column(key, *column, home) for key, column in columns.items()}
        served = {key: values for key, values in self._ring.items() if not key.startswith("_")}
        self._gather = WindowGather(spec, served, self._ring["_first"], self._ring["_last"], ring=True, n_final=1)

    @property
    def device(self) -> torch.device:
        """Where `batch` gathers."""
        return self._gather.device

    def add(self, episode: Episode, task_index: int = 0) -> None:
        """Keep an episode as the newest one; the oldest are evicted to make room.

        Args:
            episode: With its observations.
            task_index: The task that its policy was given.

        Raises:
            UserError: It has more frames than the buffer, or the disk is full.
        """
        columns = _columns(episode, task_index)
        if len(episode) + 1 > self.capacity:
            raise UserError(
                f"online.buffer_capacity={self.capacity} has no room for an episode of {len(episode)} steps, which "
                f"takes {len(episode) + 1} frames; raise it.",
                key="online.buffer_capacity",
            )
        file = self._file(self.next_index)
        with disk_full_as_user_error(file):
            write_bytes(file, to_bytes(columns))
        self._append(columns)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Positions int64 (count,), uniform over the frames that may be drawn, with replacement."""
        if self._cumulative is None:
            ends = np.cumsum([self._drawable(episode) for episode in self.episodes])
            # Of each episode: its first position, less the frames that may be drawn before it.
            self._cumulative = ends, np.array([e.first for e in self.episodes]) - np.append(0, ends[:-1])
        ends, shifts = self._cumulative
        drawn = torch.randint(self.num_sampleable, (count,), generator=generator).numpy()
        return torch.from_numpy(drawn + shifts[np.searchsorted(ends, drawn, side="right")])

    def batch(
        self, indices: Tensor, window: Window, *, pin: bool = False, keys: Collection[str] | None = None
    ) -> Batch:
        """The frames at the positions `indices` with their windows; see `robolearn.data.protocols.FrameSource.batch`.

        The frame that an episode ended in is no padding for observations.

        Args:
            indices: Positions int64 (B,).
            window: Offsets, in frames, of observations, actions and rewards.
            pin: Gather into page-locked memory.
            keys: Gather these alone; None for everything.
        """
        return self._gather(indices, window, pin=pin, keys=keys)

    def state_dict(self) -> dict[str, int]:
        """Which episodes are in the buffer; what they hold is in their files."""
        first = self.episodes[0] if self.episodes else StoredEpisode(self.next_index, self._end, 0)
        return {"first_index": first.index, "next_index": self.next_index, "first_position": first.first}

    def load_state_dict(self, state: dict[str, Any], keep_newer: bool) -> None:
        """Fill the buffer with the episodes of a state.

        Args:
            state: As `state_dict` returned it.
            keep_newer: Episodes written after it are kept as well, otherwise removed: they will be collected again.

        Raises:
            UserError: A file is missing or broken.
        """
        self.episodes.clear()
        self.frames, self.num_sampleable, self._cumulative = 0, 0, None
        self.next_index, self._end = state["first_index"], state["first_position"]
        files = self._files()
        for index in sorted(i for i in files if i >= state["next_index"] and not keep_newer):
            files[index].unlink()
        last = max(files, default=-1) + 1 if keep_newer else state["next_index"]
        for index in range(state["first_index"], max(last, state["next_index"])):
            self._append(self._read(index))

    def clear(self) -> None:
        """Remove the files that an earlier attempt left in the folder."""
        for file in self._files().values():
            file.unlink()

    def prune(self, before: int) -> None:
        """Remove the files of the episodes with indices below `before`, unless they are in the buffer."""
        oldest = self.state_dict()["first_index"]
        for index, file in self._files().items():
            if index < min(before, oldest):
                file.unlink()

    def _drawable(self, episode: StoredEpisode) -> int:
        return max(episode.steps - self.drop_n_last_frames, 0)

    def _append(self, columns: dict[str, np.ndarray]) -> None:
        """Put an episode into the ring, after evicting the oldest ones that are in its way."""
        stored = StoredEpisode(self.next_index, self._end, len(columns["action"]))
        while self.episodes and self.frames + stored.frames > self.capacity:
            evicted = self.episodes.popleft()
            self.frames -= evicted.frames
            self.num_sampleable -= self._drawable(evicted)
        frame_index = torch.arange(stored.frames)
        index = stored.first + frame_index
        written = {key: torch.from_numpy(np.ascontiguousarray(values)) for key, values in columns.items()} | {
            "index": index,
            "episode_index": torch.full_like(index, stored.index),
            "frame_index": frame_index,
            "timestamp": frame_index / self.spec.fps,
            "_first": torch.full_like(index, stored.first),
            "_last": torch.full_like(index, stored.first + stored.steps),
        }
        rows = (index % self.capacity).to(self.device)
        for key, ring in self._ring.items():
            ring[rows[: len(written[key])]] = written[key].to(self.device, ring.dtype)
        self.episodes.append(stored)
        self.frames += stored.frames
        self.num_sampleable += self._drawable(stored)
        self._cumulative = None
        self.next_index += 1
        self._end += stored.frames

    def _read(self, index: int) -> dict[str, np.ndarray]:
        file = self._file(index)
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"The collected episode {file}, which the checkpoint refers to, can't be read "
                f"({one_line(error, 100)}); remove the newest checkpoint or give another output_dir.",
                key=str(file),
            ) from error

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:08d}.safetensors"

    def _files(self) -> dict[int, Path]:
        return {int(file.stem): file for file in self.folder.glob("[0-9]*.safetensors")}

    def _column(self, key: str, dtype: torch.dtype, shape: tuple[int, ...], home: torch.device) -> Tensor:
        if home.type != "cpu":
            return torch.zeros((self.capacity, *shape), dtype=dtype, device=home)
        size = _bytes(self.capacity, dtype, shape)
        # A working copy, created at each start and without holes, so that a full disk is reported now.
        file = self.folder / f"ring.{key}"
        with disk_full_as_user_error(file):
            file.unlink(missing_ok=True)
            with file.open("wb") as new:
                _allocate(new.fileno(), size)
        flat = torch.from_file(str(file), shared=True, size=size // dtype.itemsize, dtype=dtype)
        return flat.view(self.capacity, *shape)


def _columns(episode: Episode, task_index: int) -> dict[str, np.ndarray]:
    """The columns of an episode's file: observations (T + 1, ...), everything else (T, ...)."""
    assert episode.observations is not None
    steps = len(episode)
    ended = np.zeros(steps, bool)
    ended[-1] = True
    success = np.zeros(steps, bool) if episode.successes is None else episode.successes
    return {key: np.ascontiguousarray(value) for key, value in episode.observations.items()} | {
        "action": episode.actions.astype(np.float32),
        "next.reward": episode.rewards.astype(np.float32),
        "next.done": ended,
        "next.success": success,
        "next.terminated": ended & episode.terminated,
        "task_index": np.full(steps, task_index),
    }


def _dtype(feature: Feature) -> torch.dtype:
    return torch.uint8 if feature.is_image else torch.float32


def _bytes(frames: int, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return frames * int(np.prod(shape)) * dtype.itemsize


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.truncate(descriptor, size)
