"""Demonstrations that serve whole batches: one gather a feature, wherever the decoded frames lie."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from robolearn.data.lerobot_format.columns import STRING_DTYPES
from robolearn.data.lerobot_format.dataset_root import find_root
from robolearn.data.lerobot_format.meta import DatasetMeta, read_meta, select_episodes
from robolearn.data.lerobot_format.stats import feature_stats
from robolearn.data.lerobot_format.validation import check_files
from robolearn.data.protocols import FrameDataset
from robolearn.data.video import frame_cache
from robolearn.data.video.placement import Tier, choose_tier
from robolearn.data.window import WindowGather
from robolearn.errors import UserError
from robolearn.system.paths import cache_dir
from robolearn.types import Batch, Feature, PositiveFloat, Spec, Weight, Window, kind_of

log = logging.getLogger(__name__)

TIER_NAMES = {"gpu": "memory of the device", "host": "main memory", "disk": "the file, mapped into memory"}


class LeRobotDataset(FrameDataset):
    """A dataset in LeRobot's format v2.0, v2.1 or v3.0, from a folder or the Hugging Face hub.

    The constructor reads the files below ``meta/`` only; `load` verifies and decodes everything else.

    Args:
        repo_id: Name on the hub. Looked up on this machine alone, unless `download`.
        root: Folder of the dataset, which goes before `repo_id`.
        episodes: Episodes to use, in this order; None for all. Statistics are the whole set's all the same.
        exclude: Observations to leave out, such as a camera that the policy has no use for; they are not decoded.
        revision: Branch, tag or commit on the hub.
        download: Fetch from the hub what is not on this machine. HF_HUB_OFFLINE forbids it.
        use_imagenet_stats: Mean and deviation of ImageNet for every colour camera, not the dataset's own.
        video_backend: ``av`` (also called ``pyav``), or ``torchcodec`` if that is installed.
        tolerance_s: How far, in seconds, a frame may lie from its nominal time.
        cache: Where decoded frames are kept: ``gpu`` (the device), ``host`` (main memory), ``disk``, or the
            first of these that has room (``auto``).
        cache_dir: Folder of decoded frames; by default ``$ROBOLEARN_CACHE`` or ``~/.cache/robolearn``.
        max_gpu_gb: How much of the device ``auto`` may fill; a quarter of what is free if None.
        max_host_gb: How much main memory ``auto`` may fill; half of what is free if None.

    Attributes:
        spec: Features, images as (C, H, W).
        stats: float32 statistics of every feature of `spec`, images (C, 1, 1).
        fps: Frames a second.
        num_frames: Frames of the chosen episodes; batches count them from 0.
        num_episodes: Episodes chosen.
        tasks: Tasks of the episodes, by task index.

    Raises:
        UserError: The dataset is not found, or its description is broken or does not fit the arguments.
    """

    def __init__(
        self,
        repo_id: str | None = None,
        root: str | None = None,
        episodes: Sequence[int] | None = None,
        exclude: Sequence[str] = (),
        revision: str | None = None,
        download: bool = False,
        use_imagenet_stats: bool = True,
        video_backend: Literal["av", "pyav", "torchcodec"] = "av",
        tolerance_s: PositiveFloat = 1e-4,
        cache: Literal["auto", "gpu", "host", "disk"] = "auto",
        cache_dir: str | None = None,
        max_gpu_gb: Weight | None = None,
        max_host_gb: Weight | None = None,
    ):
        self.meta = read_meta(find_root(repo_id, root, revision, download))
        self.name = repo_id if root is None and repo_id else str(self.meta.root)
        self.episodes = select_episodes(self.meta, None if episodes is None else list(episodes))
        check_excluded(exclude, make_spec(self.meta).observation)
        self.meta = _with_columns(self.meta, self.meta.columns.keys() - set(exclude))
        self.spec = make_spec(self.meta)
        check_files(self.meta, self.episodes)
        self.stats = feature_stats(self.meta.stats, self.spec, self.meta.stats_file, use_imagenet_stats)
        self.fps = self.meta.fps
        self.num_frames = sum(episode.length for episode in self.episodes)
        self.num_episodes = len(self.episodes)
        self.tasks = list(self.spec.tasks)
        self._video_backend = "av" if video_backend == "pyav" else video_backend
        self._tolerance_s = tolerance_s
        self._cache: Literal["auto", "gpu", "host", "disk"] = cache
        self._cache_dir = cache_dir
        self._max_gpu_gb, self._max_host_gb = max_gpu_gb, max_host_gb
        self._gather: WindowGather | None = None

    @property
    def _loaded(self) -> WindowGather:
        if self._gather is None:
            raise RuntimeError("LeRobotDataset.load(device) comes before its frames can be used")
        return self._gather

    @property
    def device(self) -> torch.device:
        """Where `batch` gathers. Known once loaded."""
        return self._loaded.device

    @property
    def has_rewards(self) -> bool:
        """Whether batches may hold ``next.reward``."""
        return "next.reward" in self.meta.columns

    @property
    def image_bytes(self) -> int:
        """Bytes of the decoded frames."""
        return sum(self.num_frames * int(np.prod(column.shape)) for column in self.meta.cameras.values())

    def select_columns(self, keys: Collection[str]) -> None:
        """Leave out every column that is not among `keys`; before `load`, so that it is not decoded either."""
        self.meta = _with_columns(self.meta, keys)
        self.spec = make_spec(self.meta)
        self.stats = {key: values for key, values in self.stats.items() if key in keys}

    def load(self, device: torch.device, tier: Tier | None = None) -> "LeRobotDataset":
        """Verify all columns, decode the frames that the cache does not hold, and place everything in memory.

        Args:
            device: The device that trains; frames go there if they fit.
            tier: Where the frames are kept; None: as the key ``dataset.cache`` says.

        Returns:
            Itself.

        Raises:
            UserError: A file is missing, broken or unlike its description, or there is no room.
        """
        # Decoders are imported here, since checking a configuration needs none.
        from robolearn.data.lerobot_format.columns import read_columns

        device = torch.device(device)
        cameras = self.meta.cameras
        size = self.image_bytes
        tier = tier or choose_tier(self._cache, size, device, self._max_gpu_gb, self._max_host_gb)
        table = read_columns(self.meta, self.episodes, self._tolerance_s)
        home = device if tier == "gpu" else torch.device("cpu")
        folder = Path(self._cache_dir).expanduser() if self._cache_dir else cache_dir()
        data = {key: self._camera_frames(table, key, folder, tier, home) for key in cameras}
        for key, values in table.columns.items():
            data[key] = _tensor(values, key, self.spec).to(home)
        lengths = torch.as_tensor([episode.length for episode in self.episodes])
        first = torch.as_tensor(table.starts[:-1]).repeat_interleave(lengths)
        last = first + lengths.repeat_interleave(lengths) - 1
        self._gather = WindowGather(self.spec, data, first.to(home), last.to(home))
        self._task_index = data["task_index"].cpu()
        self._report(tier, size, folder)
        return self

    def _camera_frames(self, table, key: str, folder: Path, tier: Tier, home: torch.device) -> Tensor:
        from robolearn.data.video.camera_frames import load_camera_frames

        arguments = (self.meta, table, key, folder, self._video_backend, self._tolerance_s)
        entry = load_camera_frames(*arguments)
        if tier == "disk":
            return entry.mapped()
        frames = entry.copy_to(home)
        if frames is None:
            frames = load_camera_frames(*arguments, rebuild=True).copy_to(home)
        if frames is None:
            raise UserError(
                f"{entry.file} reads back other bytes than were written: look at that disk.", key=str(entry.file)
            )
        return frames

    def _report(self, tier: Tier, size: int, folder: Path) -> None:
        what = f"{self.name}: {self.num_frames:,} frames in {self.num_episodes} episodes"
        if not size:
            log.info("%s, without images, in memory of %s.", what, self.device)
            return
        log.info(
            "%s; the decoded frames are used from %s (dataset.cache=%s) and kept for other runs in %s "
            "(%s; delete that folder to have the room back).",
            what,
            TIER_NAMES[tier],
            tier,
            folder / "frames",
            frame_cache.gigabytes(size),
        )

    def batch(
        self, indices: Tensor, window: Window, *, pin: bool = False, keys: Collection[str] | None = None
    ) -> Batch:
        """The frames at `indices` with their windows; see `robolearn.data.protocols.FrameSource.batch`.

        Beside ``index`` and ``task_index``, every other scalar of the dataset is in it, such as ``episode_index``,
        ``frame_index``, ``timestamp`` and ``next.done``. ``index`` is the dataset's own.

        Args:
            indices: int64 (B,), frames of the chosen episodes, from 0.
            window: Offsets, in frames, of observations, actions and rewards.
            pin: Gather into page-locked memory.
            keys: Gather these alone; None for everything.
        """
        return self._loaded(indices, window, pin=pin, keys=keys)

    def valid_indices(self, drop_n_last_frames: int) -> Tensor:
        """The frames to train on: int64 (n,), all but the last `drop_n_last_frames` of every episode.

        Raises:
            UserError: No frame is left.
        """
        parts, start = [], 0
        for episode in self.episodes:
            parts.append(torch.arange(start, start + max(episode.length - drop_n_last_frames, 0)))
            start += episode.length
        indices = torch.cat(parts)
        if not len(indices):
            longest = max(episode.length for episode in self.episodes)
            raise UserError(
                f"{self.name} has no episode longer than the {drop_n_last_frames} last frames that the policy "
                f"leaves out (the longest has {longest}): shorten its horizon, or choose other dataset.episodes.",
                key="dataset.episodes",
            )
        return indices

    def task_of(self, indices: Tensor) -> list[str]:
        """The tasks of the frames `indices` (B,)."""
        return [self.meta.tasks[int(index)] for index in self._task_index[indices.cpu()]]


def make_spec(meta: DatasetMeta) -> Spec:
    """The features of a dataset: its keys ``observation.*`` and ``action``."""
    observation = {}
    for key, column in meta.columns.items():
        if key.startswith("observation.") and column.dtype not in STRING_DTYPES:
            observation[key] = Feature(kind_of(key, column.is_visual), column.shape)
    # Indices without a task are used by no frame, which is checked when frames are read.
    tasks = tuple(meta.tasks.get(index, "") for index in range(max(meta.tasks, default=-1) + 1))
    return Spec(observation, Feature("ACTION", meta.columns["action"].shape), meta.fps, meta.settings, tasks)


def _with_columns(meta: DatasetMeta, keys: Collection[str]) -> DatasetMeta:
    return replace(meta, columns={key: column for key, column in meta.columns.items() if key in keys})


def check_excluded(exclude: Collection[str], observed: Collection[str]) -> None:
    """Check the observations to exclude.

    Raises:
        UserError: A key is no observation, or no observation is left.
    """
    for key in exclude:
        if key not in observed:
            raise UserError(
                f"dataset.exclude: {key} is none of the dataset's observations: {', '.join(observed)}.",
                key="dataset.exclude",
            )
    if exclude and set(exclude) >= set(observed):
        raise UserError("dataset.exclude leaves no observation; name fewer.", key="dataset.exclude")


def _tensor(values: np.ndarray, key: str, spec: Spec) -> Tensor:
    """A column as it is served: features of `spec` float32 (n, *shape), other scalars (n,)."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if key == "action" or key in spec.observation:
        return tensor.to(torch.float32)
    return tensor.squeeze(1) if tensor.ndim == 2 and tensor.shape[1] == 1 else tensor
