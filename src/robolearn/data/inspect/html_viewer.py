"""A dataset as one HTML page: an episode's cameras with its curves beside them, and how all actions are distributed."""

import base64
import html
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robolearn.data.lerobot_dataset import LeRobotDataset
from robolearn.data.lerobot_format.meta import read_json
from robolearn.data.video.encode import VideoEncoder
from robolearn.errors import UserError
from robolearn.types import Window

COLOURS = ("#2a6fdb", "#d1495b", "#2e8b57", "#e08e0b", "#7b4fa3", "#118a8a", "#8d5524", "#5c677d")
WIDTH, HEIGHT, MARGIN = 640, 130, 48
BINS = 41

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #1c2733 }}
body {{ margin: 1.5rem auto; max-width: 1180px; padding: 0 1rem }}
h1 {{ font-size: 1.35rem; margin: 0 }} h2 {{ font-size: 1.05rem; margin: 1.6rem 0 .4rem }} p {{ margin: .3rem 0 }}
.muted {{ color: #5c6b7a }} .row {{ display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start }}
.cameras {{ flex: 0 1 400px }} .curves {{ flex: 1 1 600px }}
figure {{ margin: 0 0 .8rem }} figcaption {{ font-size: .88rem; color: #5c6b7a }}
video {{ width: 100%; min-width: 240px; image-rendering: pixelated; border-radius: 6px; background: #000 }}
svg {{ width: 100%; height: auto; background: #f6f8fa; border-radius: 6px; cursor: crosshair }}
svg text {{ font-size: 11px; fill: #5c6b7a }} .key {{ display: inline-block; margin-right: .8rem; font-size: .85rem }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: .8rem }}
table {{ border-collapse: collapse; font-size: .9rem }} td, th {{ text-align: left; padding: .1rem 1rem .1rem 0 }}
</style>
<h1>{title}</h1>
<p class="muted">{summary}</p>
<h2>Episode {episode}: {task}</h2>
<p class="muted">{about}</p>
<div class="row"><div class="cameras">{cameras}</div><div class="curves">{curves}</div></div>
<h2>Actions of the whole set</h2>
<div class="grid">{distribution}</div>
<h2>Episodes</h2>
<div class="grid">{episodes}</div>
<h2>Features</h2>
{features}
<script>
const last = {last}, fps = {fps}, left = {margin}, wide = {width} - {margin} - 8;
const videos = [...document.querySelectorAll("video")], lines = [...document.querySelectorAll(".now")];
function mark(frame) {{
  for (const line of lines) {{
    const x = left + wide * Math.min(frame / Math.max(last, 1), 1);
    line.setAttribute("x1", x); line.setAttribute("x2", x);
  }}
}}
function seek(event) {{
  const box = event.currentTarget.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width * {width};
  const frame = Math.max(0, Math.min(last, (x - left) / wide * last));
  for (const video of videos) video.currentTime = (frame + 0.5) / fps;
  mark(frame);
}}
for (const plot of document.querySelectorAll(".curves svg")) plot.addEventListener("click", seek);
function tick() {{
  if (videos.length && !videos[0].paused) mark(videos[0].currentTime * fps);
  requestAnimationFrame(tick);
}}
for (const video of videos.slice(1)) {{
  videos[0].addEventListener("play", () => video.play());
  videos[0].addEventListener("pause", () => video.pause());
}}
tick();
</script>
</html>
"""


def show(root: Path, episode: int) -> str:
    """The page, in one piece that needs nothing beside it.

    Args:
        root: The dataset.
        episode: Which episode it plays.

    Raises:
        UserError: The dataset is broken or has no such episode.
    """
    whole = LeRobotDataset(root=str(root))
    if not 0 <= episode < whole.num_episodes:
        raise UserError(f"{root} has the episodes 0 to {whole.num_episodes - 1}, not {episode}.")
    one = LeRobotDataset(root=str(root), episodes=[episode]).load(torch.device("cpu"))
    batch = {key: value.numpy() for key, value in one.batch(torch.arange(one.num_frames), Window(reward=(0,))).items()}
    # One frame a step: the windows are of length one.
    values = {key: value[:, 0] if f"{key}_is_pad" in batch else value for key, value in batch.items()}
    actions, rewards = _numbers(whole)
    info = read_json(root / "meta" / "info.json")
    seconds = whole.num_frames / whole.fps
    return PAGE.format(
        title=html.escape(root.resolve().name),
        summary=f"LeRobot dataset {whole.meta.version}: {whole.num_episodes} episodes, {whole.num_frames:,} frames at "
        f"{whole.fps:g} a second ({seconds / 60:.1f} minutes)",
        episode=episode,
        task=html.escape(one.task_of(torch.tensor([0]))[0]),
        about=_about(values, one),
        cameras="".join(_camera(key, values[key], one.fps) for key in one.meta.cameras),
        curves="".join(_curves(key, values, info) for key in _plotted(values, one)),
        distribution="".join(_histogram(f"action {d}", actions[:, d]) for d in range(actions.shape[1])),
        episodes=_histogram("frames an episode", np.array([each.length for each in whole.episodes])) + rewards,
        features=_features(info),
        last=one.num_frames - 1,
        fps=one.fps,
        margin=MARGIN,
        width=WIDTH,
    )


def _numbers(dataset: LeRobotDataset) -> tuple[np.ndarray, str]:
    """All actions (n, A), and a histogram of the episodes' largest rewards if there are any."""
    from robolearn.data.lerobot_format.columns import read_columns

    table = read_columns(dataset.meta, dataset.episodes, 1e-4)
    actions = table.columns["action"].reshape(dataset.num_frames, -1)
    if "next.reward" not in table.columns:
        return actions, ""
    parts = np.split(table.columns["next.reward"].reshape(-1), table.starts[1:-1])
    return actions, _histogram("largest reward of an episode", np.array([part.max() for part in parts]))


def _about(values: dict[str, np.ndarray], one: LeRobotDataset) -> str:
    text = f"{one.num_frames} frames, {one.num_frames / one.fps:.1f} s"
    if "next.reward" in values:
        text += f", sum of rewards {values['next.reward'].sum():.2f}, largest {values['next.reward'].max():.2f}"
    if "next.success" in values:
        text += ", ends in success" if values["next.success"].any() else ", no success"
    return text + ". A click into a curve goes to that frame."


def _plotted(values: dict[str, np.ndarray], one: LeRobotDataset) -> list[str]:
    numbers = [key for key in one.spec.observation if key not in one.meta.cameras]
    further = [key for key in ("executed_action", "clean_action", "next.reward") if key in values]
    return [*numbers, "action", *further]


def _camera(key: str, frames: np.ndarray, fps: float) -> str:
    """The frames (T, C, H, W) as H.264, which every browser plays, whatever the dataset's codec is."""
    height, width = (size // 2 * 2 for size in frames.shape[2:])
    pictures = np.repeat(frames, 3, axis=1) if frames.shape[1] == 1 else frames
    clip = VideoEncoder()(pictures[:, :, :height, :width], fps)
    assert isinstance(clip.source, bytes)
    data = base64.b64encode(clip.source).decode()
    source = f"data:video/mp4;base64,{data}"
    return (
        f'<figure><video src="{source}" controls loop muted autoplay></video>'
        f"<figcaption>{html.escape(key)}, {frames.shape[2]} x {frames.shape[3]}</figcaption></figure>"
    )


def _names(key: str, count: int, info: dict[str, Any]) -> list[str]:
    names = info["features"].get(key, {}).get("names")
    if isinstance(names, dict) and len(names) == 1:
        names = next(iter(names.values()))
    if isinstance(names, list) and len(names) == count:
        return [str(name) for name in names]
    return [str(number) for number in range(count)]


def _curves(key: str, values: dict[str, np.ndarray], info: dict[str, Any]) -> str:
    numbers = values[key].reshape(len(values[key]), -1).astype(float)
    low, high = float(numbers.min()), float(numbers.max())
    span = (high - low) or 1.0
    x = MARGIN + (WIDTH - MARGIN - 8) * np.arange(len(numbers)) / max(len(numbers) - 1, 1)
    y = 8 + (HEIGHT - 26) * (high - numbers) / span
    lines, keys = [], []
    for d, name in enumerate(_names(key, numbers.shape[1], info)):
        colour = COLOURS[d % len(COLOURS)]
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y[:, d], strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        keys.append(f'<span class="key" style="color:{colour}">&#9644; {html.escape(name)}</span>')
    marks = (
        f'<text x="2" y="16">{high:.3g}</text><text x="2" y="{HEIGHT - 16}">{low:.3g}</text>'
        f'<text x="{MARGIN}" y="{HEIGHT - 4}">frame 0</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end">{len(numbers) - 1}</text>'
        f'<line class="now" x1="{MARGIN}" x2="{MARGIN}" y1="4" y2="{HEIGHT - 16}" stroke="#1c2733"/>'
    )
    shown = "".join(keys) if len(keys) <= 16 else f'<span class="key">{len(keys)} numbers</span>'
    plot = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(lines)}{marks}</svg>'
    return f"<figure><figcaption>{html.escape(key)} &nbsp; {shown}</figcaption>{plot}</figure>"


def _histogram(title: str, values: np.ndarray) -> str:
    counts, edges = np.histogram(values.astype(float), bins=min(BINS, max(len(np.unique(values)), 1)))
    width, height = 260, 90
    step = width / len(counts)
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - 16 - (height - 24) * c / counts.max():.1f}" width="{step * 0.92:.1f}" '
        f'height="{(height - 24) * c / counts.max():.1f}" fill="{COLOURS[0]}"/>'
        for i, c in enumerate(counts)
    )
    ends = (
        f'<text x="2" y="{height - 3}">{edges[0]:.4g}</text>'
        f'<text x="{width - 2}" y="{height - 3}" text-anchor="end">{edges[-1]:.4g}</text>'
    )
    about = f"{html.escape(title)}: mean {values.mean():.4g}, deviation {values.std():.3g}"
    return f'<figure><figcaption>{about}</figcaption><svg viewBox="0 0 {width} {height}">{bars}{ends}</svg></figure>'


def _features(info: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{each['dtype']}</td><td>{json.dumps(each['shape'])}</td></tr>"
        for key, each in info["features"].items()
    )
    return f"<table><tr><th>key</th><th>type</th><th>shape</th></tr>{rows}</table>"
