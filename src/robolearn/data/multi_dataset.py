"""Several datasets as one, with their common features, drawn by weights."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from robolearn.data.lerobot_dataset import LeRobotDataset, check_excluded
from robolearn.data.lerobot_format.columns import REQUIRED_COLUMNS
from robolearn.data.lerobot_format.meta import ColumnMeta
from robolearn.data.lerobot_format.stats import RawStats, aggregate, feature_stats
from robolearn.data.protocols import FrameDataset
from robolearn.data.sampling import BatchSampler, WeightedSampler
from robolearn.data.video.placement import choose_tier
from robolearn.errors import UserError
from robolearn.types import Batch, NonNegative, PositiveFloat, Spec, Stats, Weight, Window

log = logging.getLogger(__name__)


class MultiDataset(FrameDataset):
    """Serves the frames of several datasets of one robot, one after another, as one dataset would.

    Only keys that all of them have, with the same shape, are served; the others are named in the log and not decoded.

    Args:
        sources: Folders or hub ids (an existing folder takes precedence), or datasets with options of their own.
        weights: Share of each dataset in what is drawn; None: every frame is drawn equally often.
        statistics: ``joint``: those of all frames together; ``per_dataset``: in training, every sample is normalised
            by those of its own dataset.
        acts_with: With ``per_dataset``, index of the dataset whose statistics unnormalise actions.
        exclude: Observations to leave out of all of them.
        download: As for a `LeRobotDataset`, and so are the others below; they are those of sources given as strings.
        use_imagenet_stats: As there; also of the joint statistics.
        video_backend: As there.
        tolerance_s: As there.
        cache: As there, for all sources together.
        cache_dir: As there.
        max_gpu_gb: As there, for all sources together.
        max_host_gb: As there, for all sources together.

    Attributes:
        datasets: The datasets.
        spec: The common features.
        stats: float32 statistics of every feature of `spec`, which unnormalise actions.
        fps: Frames per second, of all.
        num_frames: Frames of all; batches count them from 0.
        num_episodes: Episodes of all.
        tasks: Tasks of the episodes, by task index.
        acts_with: Index of the dataset whose statistics unnormalise actions, where each has its own.

    Raises:
        UserError: A dataset is not found or broken, they do not fit each other, or a weight is invalid.
    """

    def __init__(
        self,
        sources: Sequence[str | LeRobotDataset],
        weights: Sequence[float] | None = None,
        statistics: Literal["joint", "per_dataset"] = "joint",
        acts_with: NonNegative = 0,
        exclude: Sequence[str] = (),
        download: bool = False,
        use_imagenet_stats: bool = True,
        video_backend: Literal["av", "pyav", "torchcodec"] = "av",
        tolerance_s: PositiveFloat = 1e-4,
        cache: Literal["auto", "gpu", "host", "disk"] = "auto",
        cache_dir: str | None = None,
        max_gpu_gb: Weight | None = None,
        max_host_gb: Weight | None = None,
    ):
        if not sources:
            raise UserError(
                "dataset.sources names no dataset: give dataset.sources=[FOLDER_OR_ID,...].", key="dataset.sources"
            )
        options: dict[str, Any] = {
            "download": download,
            "use_imagenet_stats": use_imagenet_stats,
            "video_backend": video_backend,
            "tolerance_s": tolerance_s,
            "cache_dir": cache_dir,
        }
        self.datasets = [_open(source, options) for source in sources]
        self.weights = _checked_weights(weights, len(self.datasets))
        if not 0 <= acts_with < len(self.datasets):
            raise UserError(
                f"dataset.acts_with={acts_with}: the datasets are 0 to {len(self.datasets) - 1}.",
                key="dataset.acts_with",
            )
        check_excluded(exclude, dict.fromkeys(key for dataset in self.datasets for key in dataset.spec.observation))
        for dataset in self.datasets:
            dataset.select_columns(dataset.meta.columns.keys() - set(exclude))
        self.spec = self._common_spec()
        each = [dataset.stats for dataset in self.datasets]
        self._is_per_dataset = statistics == "per_dataset"
        self.stats = each[acts_with] if statistics == "per_dataset" else self._joint_stats(use_imagenet_stats)
        self.fps = self.spec.fps
        self.num_frames = sum(dataset.num_frames for dataset in self.datasets)
        self.num_episodes = sum(dataset.num_episodes for dataset in self.datasets)
        self.tasks = list(dict.fromkeys(task for dataset in self.datasets for task in dataset.tasks))
        self.spec = replace(self.spec, tasks=tuple(self.tasks))
        self.acts_with = acts_with
        self._starts = np.cumsum([0, *(dataset.num_frames for dataset in self.datasets)])
        self._cache: Literal["auto", "gpu", "host", "disk"] = cache
        self._max_gpu_gb, self._max_host_gb = max_gpu_gb, max_host_gb
        self._task_indices: list[Tensor] = []

    @property
    def device(self) -> torch.device:
        """Where `batch` gathers. Known once loaded."""
        return self.datasets[0].device

    @property
    def has_rewards(self) -> bool:
        """Whether batches may hold ``next.reward``."""
        return all(dataset.has_rewards for dataset in self.datasets)

    def load(self, device: torch.device) -> "MultiDataset":
        """Load all datasets into the same memory; see `LeRobotDataset.load`.

        Raises:
            UserError: A file is missing, broken or unlike its description, or there is no room.
        """
        size = sum(dataset.image_bytes for dataset in self.datasets)
        tier = choose_tier(self._cache, size, torch.device(device), self._max_gpu_gb, self._max_host_gb)
        for dataset in self.datasets:
            dataset.load(device, tier)
        self._task_indices = [self._common_indices(dataset).to(self.device) for dataset in self.datasets]
        return self

    def batch(
        self, indices: Tensor, window: Window, *, pin: bool = False, keys: Collection[str] | None = None
    ) -> Batch:
        """The frames at `indices` with their windows, as `LeRobotDataset.batch` returns them.

        ``dataset_index`` (B,) is added; ``task_index`` is the index in `tasks`, while ``index`` and ``episode_index``
        are those of each dataset.

        Args:
            indices: int64 (B,), frames of all datasets, from 0, on the CPU.
            window: Offsets, in frames, of observations, actions and rewards.
            pin: Gather into page-locked memory.
            keys: Gather these alone; None for everything.
        """
        rows = indices.cpu()
        owner = torch.bucketize(rows, torch.as_tensor(self._starts[1:]), right=True)
        parts: list[Batch] = []
        for index, dataset in enumerate(self.datasets):
            own = rows[owner == index] - int(self._starts[index])
            if len(own):
                part = dataset.batch(own, window, pin=pin and len(own) == len(rows), keys=keys)
                if "task_index" in part:
                    part = part | {"task_index": self._task_indices[index][part["task_index"]]}
                parts.append(part)
        order = self._to_device(owner.argsort(stable=True).argsort())
        whole = {"dataset_index": self._to_device(owner)} if keys is None or "dataset_index" in keys else {}
        for key in parts[0]:
            values = [part[key] for part in parts]
            whole[key] = values[0] if len(values) == 1 else torch.cat(values).index_select(0, order)
        return {key: value.pin_memory() for key, value in whole.items()} if pin else whole

    def _to_device(self, rows: Tensor) -> Tensor:
        source = rows.pin_memory() if self.device.type == "cuda" else rows
        return source.to(self.device, non_blocking=True)

    def valid_indices(self, drop_n_last_frames: int) -> Tensor:
        """The frames to train on, int64 (n,); see `LeRobotDataset.valid_indices`."""
        return torch.cat(self.valid_parts(drop_n_last_frames))

    def valid_parts(self, drop_n_last_frames: int) -> list[Tensor]:
        """The valid indices of each dataset, int64 (n_i,)."""
        starts = self._starts[:-1].tolist()
        return [d.valid_indices(drop_n_last_frames) + s for d, s in zip(self.datasets, starts, strict=True)]

    def make_sampler(self, batch_size: int, seed: int, drop_n_last_frames: int = 0) -> BatchSampler:
        """Draws every dataset by its weight; without weights, every frame equally often."""
        if self.weights is None:
            return super().make_sampler(batch_size, seed, drop_n_last_frames)
        return WeightedSampler(self.valid_parts(drop_n_last_frames), self.weights, batch_size, seed)

    def normalization_stats(self, compute: Callable[[FrameDataset], Stats]) -> tuple[Stats, list[Stats] | None]:
        """See `FrameDataset.normalization_stats`; with ``statistics="joint"`` those of all frames together."""
        if not self._is_per_dataset:
            return super().normalization_stats(compute)
        each = [compute(dataset) for dataset in self.datasets]
        return each[self.acts_with], each

    def task_of(self, indices: Tensor) -> list[str]:
        """The tasks of the frames `indices` (B,)."""
        owners = np.searchsorted(self._starts, indices.cpu().numpy(), side="right") - 1
        pairs = zip(owners.tolist(), indices.tolist(), strict=True)
        return [self.datasets[d].task_of(torch.tensor([i - int(self._starts[d])]))[0] for d, i in pairs]

    def _common_indices(self, dataset: LeRobotDataset) -> Tensor:
        """The index in `tasks` of each task of a dataset, int64 (n,)."""
        indices = torch.zeros(max(dataset.meta.tasks) + 1, dtype=torch.int64)
        for index, task in dataset.meta.tasks.items():
            indices[index] = self.tasks.index(task)
        return indices

    def _common_spec(self) -> Spec:
        """Leave out of every dataset what not all have; the spec of the rest.

        Raises:
            UserError: Actions or frame rates differ, or no observation is common to all.
        """
        first = self.datasets[0]
        for other in self.datasets[1:]:
            if other.spec.action.shape != first.spec.action.shape:
                raise UserError(
                    f"dataset.sources: actions of {first.name} have shape {first.spec.action.shape}, those of "
                    f"{other.name} {other.spec.action.shape}; give datasets of one robot.",
                    key="dataset.sources",
                )
            if other.fps != first.fps:
                raise UserError(
                    f"dataset.sources: {first.name} has {first.fps:g} frames a second and {other.name} {other.fps:g}, "
                    "so that a window would span other times; give datasets of one rate.",
                    key="dataset.sources",
                )
        offered = "; ".join(f"{d.name}: {_observations(d.spec)}" for d in self.datasets)
        common = {k: c for k, c in first.meta.columns.items() if all(_has(d, k, c) for d in self.datasets)}
        for dataset in self.datasets:
            if dropped := [key for key in dataset.meta.columns if key not in common]:
                log.warning("%s: %s is left out, because not all datasets have it.", dataset.name, ", ".join(dropped))
            dataset.select_columns(common)
        if not first.spec.observation:
            raise UserError(
                f"dataset.sources: no key observation.* is common to all, with one shape ({offered}).",
                key="dataset.sources",
            )
        return first.spec

    def _joint_stats(self, use_imagenet_stats: bool) -> Stats:
        paths = self.datasets[0].meta.stats_file
        parts: list[RawStats] = []
        for dataset in self.datasets:
            frames = np.array([sum(episode.length for episode in dataset.meta.episodes)])
            keys = [*self.spec.observation, "action"]
            parts.append({key: {**dataset.meta.stats[key], "count": frames} for key in keys})
        return feature_stats(aggregate(parts, paths), self.spec, paths, use_imagenet_stats)


def _open(source: str | LeRobotDataset, options: dict[str, Any]) -> LeRobotDataset:
    if isinstance(source, LeRobotDataset):
        return source
    folder = Path(source).expanduser()
    if folder.is_dir():
        return LeRobotDataset(root=source, **options)
    if source.startswith(("/", ".", "~")):
        raise UserError(
            f"dataset.sources: {source} is no folder; give folders of LeRobot datasets, or hub ids.",
            key="dataset.sources",
        )
    return LeRobotDataset(repo_id=source, **options)


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float] | None:
    if weights is None:
        return None
    if len(weights) != count:
        raise UserError(
            f"dataset.weights has {len(weights)} numbers for {count} datasets: give one for each.",
            key="dataset.weights",
        )
    if any(not 0 <= weight < float("inf") for weight in weights) or sum(weights) <= 0:
        raise UserError(
            f"dataset.weights={list(weights)} must be finite, not negative, and not all 0.", key="dataset.weights"
        )
    return [weight / sum(weights) for weight in weights]


def _observations(spec: Spec) -> str:
    return ", ".join(f"{key} {feature.shape}" for key, feature in spec.observation.items())


def _has(dataset: LeRobotDataset, key: str, column: ColumnMeta) -> bool:
    """Whether a dataset has a column that can be served together with this one."""
    other = dataset.meta.columns.get(key)
    if other is None or other.shape != column.shape or other.is_visual != column.is_visual:
        return False
    # Features are served as float32 whatever they are stored as, other numbers as they are.
    return key in dataset.spec.observation or key in ("action", *REQUIRED_COLUMNS) or other.dtype == column.dtype
