"""A summary of a dataset for people."""

from pathlib import Path
from typing import Any

import numpy as np

from robolearn.data.lerobot_format.columns import read_columns
from robolearn.data.lerobot_format.meta import DatasetMeta, read_json, read_meta
from robolearn.data.video.frame_cache import gigabytes


def describe(root: Path) -> str:
    """A few lines on the dataset in a folder; reads its numbers, not its images.

    Raises:
        UserError: It is broken.
    """
    meta = read_meta(root)
    info = read_json(root / "meta" / "info.json")
    lengths = np.array([episode.length for episode in meta.episodes])
    seconds = lengths.sum() / meta.fps
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    lines = {
        "dataset": str(root),
        "format": meta.version,
        "size": gigabytes(size),
        "episodes": f"{len(lengths)}, of {lengths.min()} to {lengths.max()} frames (median {np.median(lengths):g})",
        "frames": f"{lengths.sum():,} at {meta.fps:g} a second ({seconds / 60:.1f} minutes)",
        "tasks": "; ".join(meta.tasks.values()),
        **_outcomes(meta),
        **_collected(info),
    }
    width = max(map(len, meta.columns))
    features = [f"  {key:<{width}}  {_kind(info['features'][key])}" for key in meta.columns]
    return "\n".join([*(f"{name:<10}{text}" for name, text in lines.items()), "features", *features])


def _outcomes(meta: DatasetMeta) -> dict[str, str]:
    table = read_columns(meta, meta.episodes, 1e-4)
    found = {}
    if "next.success" in table.columns:
        ends = np.split(table.columns["next.success"].reshape(-1), table.starts[1:-1])
        successes = sum(bool(part.any()) for part in ends)
        found["successes"] = f"{successes} of {len(ends)} episodes"
    if "next.reward" in table.columns:
        parts = np.split(table.columns["next.reward"].reshape(-1), table.starts[1:-1])
        sums = np.array([part.sum() for part in parts])
        found["rewards"] = f"sums of {sums.min():.4g} to {sums.max():.4g}, mean {sums.mean():.4g}"
    return found


def _collected(info: dict[str, Any]) -> dict[str, str]:
    found = {}
    if settings := info.get("settings"):
        found["settings"] = ", ".join(f"{key}={value}" for key, value in settings.items())
    recipe = info.get("collection")
    if isinstance(recipe, dict):
        by = recipe.get("policy") or recipe.get("demonstrator") or {}
        name = by.get("path") or str(by.get("_target_", "")).rpartition(".")[2]
        found["collected"] = f"in {recipe.get('env', {}).get('id')} by {name}, seed {recipe.get('seed')}"
        if noise := recipe.get("action_noise"):
            found["noise"] = f"{noise:g} on actions; the action is the {recipe.get('action_label')} one"
    return found


def _kind(feature: dict[str, Any]) -> str:
    shape = " x ".join(map(str, feature["shape"]))
    codec = (feature.get("info") or {}).get("video.codec")
    return f"{feature['dtype']} {shape}" + (f", {codec}" if codec else "")
