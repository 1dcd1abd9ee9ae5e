"""Checks of a dataset before training; every error names the file, the episode and a fix."""

from pathlib import Path

import numpy as np

from robolearn.data.lerobot_format.meta import DatasetMeta, EpisodeMeta
from robolearn.errors import UserError


def check_files(meta: DatasetMeta, episodes: tuple[EpisodeMeta, ...]) -> None:
    """Refuse a dataset that lacks a file it needs of `episodes`. Looks at names alone, so that it is quick."""
    seen: set[str] = set()
    for episode in episodes:
        for name in (
            episode.data_file,
            *(location.file for key, location in episode.videos.items() if key in meta.columns),
        ):
            if name in seen:
                continue
            seen.add(name)
            if not (meta.root / name).is_file():
                raise UserError(
                    f"{meta.root / name} is missing, which holds episode {episode.index}: fetch it again, or "
                    "leave that episode out with dataset.episodes.",
                    key=str(meta.root / name),
                )


def check_rows(path: Path, episode: EpisodeMeta, rows: np.ndarray) -> None:
    """Refuse an episode whose rows are not as many as its description says, or do not lie together."""
    if len(rows) != episode.length:
        raise UserError(
            f"{path} holds {len(rows)} frames of episode {episode.index}, but meta/ gives it {episode.length}: "
            "fetch or write the dataset again.",
            key=str(path),
        )
    if rows[-1] - rows[0] + 1 != episode.length:
        raise UserError(
            f"{path} scatters the frames of episode {episode.index} among other episodes: "
            "write the dataset again, one episode after another.",
            key=str(path),
        )


def check_frames(
    path: Path, episode: EpisodeMeta, frames: dict[str, np.ndarray], meta: DatasetMeta, tolerance_s: float
) -> None:
    """Refuse one episode's numbers: frames out of order, times off the raster, NaN, unknown tasks."""
    count = np.arange(episode.length)
    frame_index = frames["frame_index"].reshape(-1)
    wrong = np.flatnonzero(frame_index != count)
    if wrong.size:
        raise UserError(
            f"{path} has frame_index {frame_index[wrong[0]]} at frame {wrong[0]} of episode {episode.index}: "
            "frames should be numbered from 0 in order, so write the dataset again.",
            key=str(path),
        )
    _check_times(path, episode, frames["timestamp"], meta.fps, tolerance_s)
    for key, values in frames.items():
        if _is_used(key) and values.dtype.kind == "f" and not np.isfinite(values).all():
            frame = np.flatnonzero(~np.isfinite(values).reshape(episode.length, -1).all(axis=1))[0]
            raise UserError(
                f"{path} holds a NaN or infinite {key!r} at frame {frame} of episode {episode.index}: "
                "correct it, or leave that episode out with dataset.episodes.",
                key=str(path),
            )
    tasks = frames["task_index"].reshape(-1)
    for task in np.unique(tasks):
        if int(task) not in meta.tasks:
            raise UserError(
                f"{path} gives episode {episode.index} the task_index {task}, which meta/tasks does not list: "
                "fetch or write the dataset again.",
                key=str(path),
            )


def _is_used(key: str) -> bool:
    return key.startswith("observation.") or key in ("action", "next.reward")


def _check_times(path: Path, episode: EpisodeMeta, timestamp: np.ndarray, fps: float, tolerance_s: float) -> None:
    seconds = timestamp.reshape(-1).astype(np.float64)
    off = np.abs(seconds - np.arange(episode.length) / fps)
    # Times are stored as float32, whose own steps pass the usual tolerance in episodes of half an hour.
    allowed = np.maximum(tolerance_s, np.spacing(np.abs(seconds).astype(np.float32)))
    wrong = np.flatnonzero(~(off <= allowed))
    if wrong.size:
        frame = int(wrong[np.argmax(np.nan_to_num(off[wrong], nan=np.inf))])
        raise UserError(
            f"{path} has timestamp {seconds[frame]:.6g} s at frame {frame} of episode {episode.index}, where "
            f"{fps:g} frames a second make {frame / fps:.6g} s: correct it, or allow for it with "
            f"dataset.tolerance_s, which is {tolerance_s:g}.",
            key=str(path),
        )
