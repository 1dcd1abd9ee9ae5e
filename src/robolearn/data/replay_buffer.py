"""Episodes collected during training: the newest frames, served by index as a dataset's are."""

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as to_bytes
from torch import Tensor

from robolearn.data.lerobot_dataset import gather
from robolearn.data.video.placement import choose_tier
from robolearn.episodes import Episode
from robolearn.errors import UserError
from robolearn.system.files import disk_full_as_user_error, write_bytes
from robolearn.types import Batch, Feature, Spec, Window


@dataclass(frozen=True)
class _Stored:
    """An episode in the buffer: its number, the position of its first frame and its steps."""

    number: int
    first: int
    steps: int

    @property
    def frames(self) -> int:
        """One more than its steps: the last frame holds what the last action led to."""
        return self.steps + 1


class ReplayBuffer:
    """Whole episodes, first in, first out, in a ring of frames and as a file each.

    The ring serves batches: it lies on the device if it fits there, otherwise in a file mapped into memory. The
    episodes' files are what a restarted run fills the ring from; they stay until `prune` names them, so that
    neither a kill nor an eviction takes away what a checkpoint refers to.

    Frames are counted from the first ever added; position p lies in row p modulo `capacity`.

    Args:
        folder: Of the files; made if it is not there.
        spec: What is observed and commanded.
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
        self.episodes: deque[_Stored] = deque()
        self.next_number = 0
        self._end = 0
        with disk_full_as_user_error(folder):
            folder.mkdir(parents=True, exist_ok=True)
        columns = {key: (_dtype(feature), feature.shape) for key, feature in spec.observation.items()}
        columns |= {"action": (torch.float32, spec.action.shape), "next.reward": (torch.float32, ())}
        columns |= {f"next.{flag}": (torch.bool, ()) for flag in ("done", "success", "terminated")}
        columns |= {"episode_index": (torch.int64, ()), "_first": (torch.int64, ()), "_steps": (torch.int64, ())}
        size = sum(_bytes(capacity, dtype, shape) for dtype, shape in columns.values())
        # "auto" alone asks for a share of what is free; a processor's own memory is not spent on what can be mapped.
        tier = choose_tier("auto", size, device, None, 0) if device.type != "cpu" else "disk"
        self._device = device if tier == "gpu" else torch.device("cpu")
        self._ring = {key: self._column(key, *column, tier == "gpu") for key, column in columns.items()}
        self._offsets: dict[tuple[int, ...], Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where batches come to lie."""
        return self._device

    @property
    def frames(self) -> int:
        """Frames in the buffer."""
        return sum(episode.frames for episode in self.episodes)

    @property
    def num_sampleable(self) -> int:
        """Frames that may be drawn."""
        return sum(self._drawable(episode) for episode in self.episodes)

    def add(self, episode: Episode) -> None:
        """Keep an episode, with its observations, as the newest one; the oldest give way to it.

        Raises:
            UserError: It has more frames than the buffer, or the disk is full.
        """
        columns = _columns(episode)
        if len(episode) + 1 > self.capacity:
            raise UserError(
                f"online.buffer_capacity={self.capacity} has no room for an episode of {len(episode)} steps, which "
                f"takes {len(episode) + 1} frames; raise it."
            )
        file = self._file(self.next_number)
        with disk_full_as_user_error(file):
            write_bytes(file, to_bytes(columns))
        self._fill(columns)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Positions int64 (count,), each frame as likely as any other, with replacement."""
        numbers = torch.randint(self.num_sampleable, (count,), generator=generator).numpy()
        ends = np.cumsum([self._drawable(episode) for episode in self.episodes])
        firsts = np.array([episode.first for episode in self.episodes])
        owner = np.searchsorted(ends, numbers, side="right")
        before = np.concatenate([[0], ends[:-1]])[owner]
        return torch.from_numpy(firsts[owner] + numbers - before)

    def batch(self, indices: Tensor, window: Window, *, pin: bool = False) -> Batch:
        """The frames at the positions `indices` with their windows.

        Args:
            indices: int64 (B,).
            window: Offsets, in frames, of observations, actions and rewards.
            pin: Gather into page-locked memory.

        Returns:
            As `LeRobotDataset.batch` does. The frame an episode ended in is no padding for observations.
        """
        if indices.device != self.device:
            indices = (indices.pin_memory() if self.device.type == "cuda" else indices).to(
                self.device, non_blocking=True
            )
        here = indices % self.capacity
        first, steps = self._ring["_first"][here][:, None], self._ring["_steps"][here][:, None]
        windowed = dict.fromkeys(self.spec.observation, window.observation) | {"action": window.action}
        if window.reward:
            windowed["next.reward"] = window.reward
        result: Batch = {}
        for key, offsets in windowed.items():
            wanted = indices[:, None] + self._offset(offsets)
            last = first + steps - (0 if key in self.spec.observation else 1)
            result[key] = gather(self._ring[key], wanted.clamp(first, last) % self.capacity, pin)
            pad = (wanted < first) | (wanted > last)
            result[f"{key}_is_pad"] = pad.pin_memory() if pin else pad
        for key, values in self._ring.items():
            if key not in windowed and not key.startswith("_"):
                result[key] = gather(values, here, pin)
        frame = indices - first.squeeze(1)
        return result | {
            "index": indices,
            "frame_index": frame,
            "timestamp": frame / self.spec.fps,
            "task_index": torch.zeros_like(frame),
        }

    def state_dict(self) -> dict[str, int]:
        """Which episodes are in the buffer; what they hold is in their files."""
        first = self.episodes[0] if self.episodes else _Stored(self.next_number, self._end, 0)
        return {"first_number": first.number, "next_number": self.next_number, "first_position": first.first}

    def load_state_dict(self, state: dict[str, Any], keep_newer: bool) -> None:
        """Fill the buffer with the episodes of a state.

        Args:
            state: What `state_dict` gave.
            keep_newer: Episodes written after it are kept as well, otherwise removed: they will be collected again.

        Raises:
            UserError: A file is missing or broken.
        """
        self.episodes.clear()
        self.next_number, self._end = state["first_number"], state["first_position"]
        files = self._files()
        for number in sorted(n for n in files if n >= state["next_number"] and not keep_newer):
            files[number].unlink()
        last = max(files, default=-1) + 1 if keep_newer else state["next_number"]
        for number in range(state["first_number"], max(last, state["next_number"])):
            self._fill(self._read(number))

    def clear(self) -> None:
        """Start empty: what an earlier attempt left in the folder is removed."""
        for file in self._files().values():
            file.unlink()

    def prune(self, before: int) -> None:
        """Remove the files of the episodes with numbers below `before`, unless they are in the buffer."""
        oldest = self.state_dict()["first_number"]
        for number, file in self._files().items():
            if number < min(before, oldest):
                file.unlink()

    def _drawable(self, episode: _Stored) -> int:
        return max(episode.steps - self.drop_n_last_frames, 0)

    def _fill(self, columns: dict[str, np.ndarray]) -> None:
        steps = len(columns["action"])
        while self.episodes and self.frames + steps + 1 > self.capacity:
            self.episodes.popleft()
        rows = (torch.arange(steps + 1) + self._end) % self.capacity
        for key, ring in self._ring.items():
            if key in columns:
                values = torch.from_numpy(np.ascontiguousarray(columns[key])).to(ring.dtype)
                ring[rows[: len(values)].to(self.device)] = values.to(self.device)
        for key, number in (("_first", self._end), ("_steps", steps), ("episode_index", self.next_number)):
            self._ring[key][rows.to(self.device)] = number
        self.episodes.append(_Stored(self.next_number, self._end, steps))
        self.next_number += 1
        self._end += steps + 1

    def _read(self, number: int) -> dict[str, np.ndarray]:
        file = self._file(number)
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"The collected episode {file}, which the checkpoint refers to, can't be read "
                f"({' '.join(str(error).split())[:100]}); remove the newest checkpoint or give another output_dir."
            ) from error

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08d}.safetensors"

    def _files(self) -> dict[int, Path]:
        return {int(file.stem): file for file in self.folder.glob("[0-9]*.safetensors")}

    def _column(self, key: str, dtype: torch.dtype, shape: tuple[int, ...], on_device: bool) -> Tensor:
        if on_device:
            return torch.zeros((self.capacity, *shape), dtype=dtype, device=self.device)
        size = _bytes(self.capacity, dtype, shape)
        # A working copy, made anew at each start; without holes, so that a full disk is told here and now.
        file = self.folder / f"ring.{key}"
        with disk_full_as_user_error(file):
            file.unlink(missing_ok=True)
            with file.open("wb") as new:
                _allocate(new.fileno(), size)
        flat = torch.from_file(str(file), shared=True, size=size // dtype.itemsize, dtype=dtype)
        return flat.view(self.capacity, *shape)

    def _offset(self, offsets: tuple[int, ...]) -> Tensor:
        if offsets not in self._offsets:  # kept, because a copy from ordinary memory makes the host wait
            self._offsets[offsets] = torch.tensor(offsets, dtype=torch.int64).to(self.device)
        return self._offsets[offsets]


def _columns(episode: Episode) -> dict[str, np.ndarray]:
    """What is stored of an episode: observations (T + 1, ...), everything else (T, ...)."""
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
