"""Metrics of a run: to TensorBoard or Weights & Biases, and the same scalars as lines of JSON."""

import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robolearn.runs.wandb_logger import WandbLogger
from robolearn.system.files import write_text

MAX_FRAMES, MAX_WIDTH = 100, 480
HPARAMS = ".hparams"  # suffix of the event file with hyperparameters


class Logger:
    """Writes ``metrics.jsonl`` (one line a logged step) and ``tensorboard/`` in a run's folder.

    Args:
        folder: The run's folder.
        tensorboard: Write TensorBoard's event files.
        wandb: Creates the run on Weights & Biases, given the run's folder; None: no such run.
    """

    def __init__(
        self, folder: Path, tensorboard: bool = True, wandb: Callable[[Path], WandbLogger] | None = None
    ) -> None:
        self.metrics = folder / "metrics.jsonl"
        self.events = folder / "tensorboard"
        self.tensorboard = tensorboard
        self.wandb = wandb(folder) if wandb else None
        self._writer: Any = None
        # TensorBoard hides earlier writers' events from this step on; a first writer without it would turn that off.
        self._purge_step = 0

    def truncate_after(self, step: int) -> dict[str, float] | None:
        """Drop what a killed run wrote after this step, so that a resumed run has every step once.

        Lines of JSON are removed; TensorBoard's events stay in their files, and TensorBoard hides them.

        Returns:
            This step's scalars where they were written completely; otherwise None, and they are to be written again.
        """
        lines = [_parsed(line) for line in self.metrics.read_text().splitlines()] if self.metrics.exists() else []
        kept = [line for line in lines if line and line["step"] <= step]
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        whole = kept[-1] if kept and kept[-1]["step"] == step else None
        self._purge_step = max(0, step + 1 if whole else step)
        return whole

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one step's scalars; call it once a step. Values that are not finite become null in JSON.

        The line of JSON comes last, so that where it exists the others have the step too.
        """
        if self.writer:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()
        if self.wandb:
            self.wandb.scalars(step, scalars)
        clean = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": step, "time": time.time(), **clean}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Log a video of frames (T, H, W, 3) uint8 as a small GIF; the video in full size is beside eval.json."""
        if not (self.writer or self.wandb):
            return
        gif = _gif(frames, fps)
        if self.wandb:
            self.wandb.gif(step, name, gif)
        if self.writer:
            from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

            height, width = frames.shape[1:3]
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
            self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
            self.writer.flush()

    def text(self, name: str, text: str) -> None:
        """Log a text, such as the configuration."""
        if self.writer:
            self.writer.add_text(name, f"```yaml\n{text}\n```", 0)
            self.writer.flush()

    def hparams(self, values: Mapping[str, bool | int | float | str], metrics: Mapping[str, float]) -> None:
        """Log the run's hyperparameters with its final metrics, for TensorBoard's HParams page."""
        if not self.tensorboard:
            return
        from torch.utils.tensorboard.summary import hparams
        from torch.utils.tensorboard.writer import FileWriter

        # They have no step, so that a run with more steps replaces the file of the run before.
        for file in self.events.glob(f"*{HPARAMS}"):
            file.unlink()
        writer = FileWriter(str(self.events), filename_suffix=HPARAMS)
        for summary in hparams(dict(values), dict(metrics)):
            writer.add_summary(summary)
        writer.close()

    def model(self, folder: Path) -> None:
        """Upload the checkpoint in a folder, where Weights & Biases keeps the run's models."""
        if self.wandb:
            self.wandb.model(folder)

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer:
            self._writer.close()
        if self.wandb:
            self.wandb.close()

    @property
    def writer(self) -> Any:
        """TensorBoard's writer, created at first use, after `truncate_after`."""
        if self._writer is None and self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.events), purge_step=self._purge_step)
        return self._writer


class NullLogger(Logger):
    """Writes nothing: the logger of every process but the main one."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tensorboard=False)

    def truncate_after(self, step: int) -> None:
        """Does nothing: the main process truncates."""

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Does nothing."""


def _gif(frames: np.ndarray, fps: float) -> bytes:
    """An animation that TensorBoard shows as an image, of at most MAX_FRAMES frames and MAX_WIDTH pixels."""
    every = -(-len(frames) // MAX_FRAMES)
    images = [Image.fromarray(frame) for frame in frames[::every]]
    for image in images:
        image.thumbnail((MAX_WIDTH, MAX_WIDTH))
    buffer = io.BytesIO()
    duration = round(1000 * every / fps)
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # cut short by a kill
