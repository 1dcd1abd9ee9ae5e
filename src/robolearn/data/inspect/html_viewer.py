"""A dataset as one HTML page: an episode's cameras and curves, and the distribution of all actions."""

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robolearn.data.lerobot_dataset import LeRobotDataset
from robolearn.data.lerobot_format.meta import read_json
from robolearn.data.video.encode import VideoEncoder
from robolearn.errors import UserError
from robolearn.system.templates import render
from robolearn.types import Window

COLOURS = ("#2a6fdb", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3", "#118a8a", "#8d5524", "#5c677d")
WIDTH, HEIGHT, MARGIN = 640, 130, 48
BINS = 41


@dataclass(frozen=True)
class Plot:
    """A plot as the template draws it, in the pixels of its view box.

    Attributes:
        caption: Its title.
        width: Of the view box.
        height: Of the view box.
        labels: (x, y, text-anchor, text) of what stands inside.
        lines: (points, colour) of each curve.
        legend: (name, colour) of each curve.
        bars: Position and size of each bar of a histogram.
        colour: Of the bars.
    """

    caption: str
    width: int
    height: int
    labels: list[tuple[int, int, str, str]]
    lines: list[tuple[str, str]] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    bars: list[dict[str, str]] = field(default_factory=list)
    colour: str = COLOURS[0]


def show(root: Path, episode: int) -> str:
    """The page, self-contained.

    Args:
        root: The dataset.
        episode: The episode whose cameras and curves it shows.

    Raises:
        UserError: The dataset is broken or has no such episode.
    """
    whole = LeRobotDataset(root=str(root))
    if not 0 <= episode < whole.num_episodes:
        raise UserError(f"{root} has the episodes 0 to {whole.num_episodes - 1}, not {episode}.", key="--episode")
    one = LeRobotDataset(root=str(root), episodes=[episode]).load(torch.device("cpu"))
    batch = {key: value.numpy() for key, value in one.batch(torch.arange(one.num_frames), Window(reward=(0,))).items()}
    # One frame a step: the windows are of length one.
    values = {key: value[:, 0] if f"{key}_is_pad" in batch else value for key, value in batch.items()}
    actions, rewards = _distributions(whole)
    info = read_json(root / "meta" / "info.json")
    seconds = whole.num_frames / whole.fps
    return render(
        "robolearn.data.inspect",
        "html_viewer.html",
        title=root.resolve().name,
        summary=f"LeRobot dataset {whole.meta.version}: {whole.num_episodes} episodes, {whole.num_frames:,} frames at "
        f"{whole.fps:g} a second ({seconds / 60:.1f} minutes)",
        episode=episode,
        task=one.task_of(torch.tensor([0]))[0],
        about=_about(values, one),
        cameras=[_camera(key, values[key], one.fps) for key in one.meta.cameras],
        curves=[_curves(key, values, info) for key in _plotted(values, one)],
        actions=[_histogram(f"action {d}", actions[:, d]) for d in range(actions.shape[1])],
        episodes=[_histogram("frames an episode", np.array([each.length for each in whole.episodes])), *rewards],
        features=info["features"],
        last=one.num_frames - 1,
        fps=one.fps,
        margin=MARGIN,
        width=WIDTH,
    )


def _distributions(dataset: LeRobotDataset) -> tuple[np.ndarray, list[Plot]]:
    """All actions (N, A), and a histogram of the episodes' largest rewards if there are any."""
    from robolearn.data.lerobot_format.columns import read_columns

    table = read_columns(dataset.meta, dataset.episodes, 1e-4)
    actions = table.columns["action"].reshape(dataset.num_frames, -1)
    if "next.reward" not in table.columns:
        return actions, []
    parts = np.split(table.columns["next.reward"].reshape(-1), table.starts[1:-1])
    return actions, [_histogram("largest reward of an episode", np.array([part.max() for part in parts]))]


def _about(values: dict[str, np.ndarray], one: LeRobotDataset) -> str:
    text = f"{one.num_frames} frames, {one.num_frames / one.fps:.1f} s"
    if "next.reward" in values:
        text += f", sum of rewards {values['next.reward'].sum():.2f}, largest {values['next.reward'].max():.2f}"
    if "next.success" in values:
        text += ", ends in success" if values["next.success"].any() else ", no success"
    return text + ". A click on a curve seeks to that frame."


def _plotted(values: dict[str, np.ndarray], one: LeRobotDataset) -> list[str]:
    numbers = [key for key in one.spec.observation if key not in one.meta.cameras]
    further = [key for key in ("executed_action", "clean_action", "next.reward") if key in values]
    return [*numbers, "action", *further]


def _camera(key: str, frames: np.ndarray, fps: float) -> dict[str, Any]:
    """The frames (T, C, H, W) as H.264, which every browser plays, whatever the dataset's codec is."""
    height, width = (size // 2 * 2 for size in frames.shape[2:])
    rgb = np.repeat(frames, 3, axis=1) if frames.shape[1] == 1 else frames
    clip = VideoEncoder()(rgb[:, :, :height, :width], fps)
    assert isinstance(clip.source, bytes)
    data = base64.b64encode(clip.source).decode()
    return {"key": key, "data": data, "height": frames.shape[2], "width": frames.shape[3]}


def _names(key: str, count: int, info: dict[str, Any]) -> list[str]:
    names = info["features"].get(key, {}).get("names")
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return [str(index) for index in range(count)]


def _curves(key: str, values: dict[str, np.ndarray], info: dict[str, Any]) -> Plot:
    series = values[key].reshape(len(values[key]), -1).astype(float)
    low, high = float(series.min()), float(series.max())
    span = (high - low) or 1.0
    x = MARGIN + (WIDTH - MARGIN - 8) * np.arange(len(series)) / max(len(series) - 1, 1)
    y = 8 + (HEIGHT - 26) * (high - series) / span
    names = _names(key, series.shape[1], info)
    colours = [COLOURS[d % len(COLOURS)] for d in range(len(names))]
    labels = [
        (2, 16, "start", f"{high:.3g}"),
        (2, HEIGHT - 16, "start", f"{low:.3g}"),
        (MARGIN, HEIGHT - 4, "start", "frame 0"),
        (WIDTH - 8, HEIGHT - 4, "end", str(len(series) - 1)),
    ]
    points = [" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y[:, d], strict=True)) for d in range(len(names))]
    legend = list(zip(names, colours, strict=True)) if len(names) <= 16 else [(f"{len(names)} dimensions", "inherit")]
    return Plot(key, WIDTH, HEIGHT, labels, lines=list(zip(points, colours, strict=True)), legend=legend)


def _histogram(title: str, values: np.ndarray) -> Plot:
    counts, edges = np.histogram(values.astype(float), bins=min(BINS, max(len(np.unique(values)), 1)))
    width, height = 260, 90
    step = width / len(counts)
    heights = (height - 24) * counts / counts.max()
    bars = [
        {"x": f"{i * step:.1f}", "y": f"{height - 16 - h:.1f}", "width": f"{step * 0.92:.1f}", "height": f"{h:.1f}"}
        for i, h in enumerate(heights)
    ]
    labels = [(2, height - 3, "start", f"{edges[0]:.4g}"), (width - 2, height - 3, "end", f"{edges[-1]:.4g}")]
    caption = f"{title}: mean {values.mean():.4g}, deviation {values.std():.3g}"
    return Plot(caption, width, height, labels, bars=bars)
