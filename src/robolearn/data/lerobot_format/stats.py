"""Statistics that inputs and outputs are normalised with, as datasets record them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robolearn.data.lerobot_format.episode_stats import QUANTILES
from robolearn.errors import UserError
from robolearn.types import Spec, Stats

RawStats = dict[str, dict[str, np.ndarray]]
"""Recorded statistics in double precision: ``mean``, ``std``, ``min``, ``max`` and maybe ``count`` by key."""

NAMES = ("mean", "std", "min", "max")

# Mean and standard deviation of the ImageNet training images, red, green and blue in [0, 1]: what the
# pretrained ResNets of torchvision were trained with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def parse_stats(stats: Mapping[str, Mapping[str, Any]], path: Path) -> RawStats:
    """Nested lists of a JSON file as arrays. Raises UserError naming `path` where they are not numbers."""
    try:
        return {
            key: {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}
            for key, values in stats.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} holds statistics that are not numbers ({error}): fetch it again.", key=str(path)
        ) from None


def aggregate(episodes: list[RawStats], path: Path) -> RawStats:
    """Statistics of the union of episodes, from those of each.

    With counts n_i, means m_i and deviations s_i: mean m = sum n_i m_i / n, variance
    sum n_i (s_i^2 + (m_i - m)^2) / n (the law of total variance). A quantile, where every episode has it, becomes
    the weighted mean of the episodes' quantiles, as LeRobot takes it; that is not the quantile of the union.
    """
    if not episodes:
        raise UserError(f"{path} is empty: fetch or write the dataset again.", key=str(path))
    merged: RawStats = {}
    for key in episodes[0]:
        try:
            parts = {name: np.stack([episode[key][name] for episode in episodes]) for name in (*NAMES, "count")}
        except (KeyError, ValueError):
            raise UserError(
                f"{path} lacks statistics of {key!r} (mean, std, min, max, count) in one of its episodes: "
                "fetch or write the dataset again.",
                key=str(path),
            ) from None
        mean, count = parts["mean"], parts["count"]
        weight = count.reshape(-1, *[1] * (mean.ndim - 1))
        total = weight.sum(axis=0)
        center = (mean * weight).sum(axis=0) / total
        variance = ((parts["std"] ** 2 + (mean - center) ** 2) * weight).sum(axis=0) / total
        merged[key] = {
            "mean": center,
            "std": np.sqrt(variance),
            "min": parts["min"].min(axis=0),
            "max": parts["max"].max(axis=0),
            "count": count.sum(axis=0),
        }
        for name in QUANTILES:
            if all(name in episode[key] for episode in episodes):
                values = np.stack([episode[key][name] for episode in episodes])
                merged[key][name] = (values * weight).sum(axis=0) / total
    return merged


def feature_stats(raw: RawStats, spec: Spec, path: Path, use_imagenet_stats: bool) -> Stats:
    """The statistics a normaliser needs: float32, shaped like the feature, images (C, 1, 1).

    `use_imagenet_stats` replaces mean and deviation of every camera of three channels by ImageNet's.
    Raises UserError naming `path` where one is missing, not finite, or of another shape.
    """
    stats: Stats = {}
    for key, feature in {**spec.observation, "action": spec.action}.items():
        shape = (feature.shape[0], 1, 1) if feature.kind == "VISUAL" else feature.shape
        stats[key] = {}
        for name in NAMES:
            value = raw.get(key, {}).get(name)
            if value is None:
                raise UserError(
                    f"{path} lacks the statistic {name!r} of {key!r}: write the dataset again.", key=str(path)
                )
            if value.size != int(np.prod(shape)):
                raise UserError(
                    f"{path} holds {name!r} of {key!r} with shape {list(value.shape)}, but info.json makes it "
                    f"{list(shape)}: fetch or write the dataset again.",
                    key=str(path),
                )
            if not np.isfinite(value).all():
                raise UserError(
                    f"{path} holds a NaN or infinite {name!r} of {key!r}: write the dataset again.", key=str(path)
                )
            stats[key][name] = torch.from_numpy(value.reshape(shape)).to(torch.float32)
        if use_imagenet_stats and feature.kind == "VISUAL" and feature.shape[0] == 3:
            stats[key]["mean"] = torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1)
            stats[key]["std"] = torch.tensor(IMAGENET_STD).reshape(3, 1, 1)
    return stats
