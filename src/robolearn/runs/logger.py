"""What a run reports: TensorBoard or Weights & Biases, and the same scalars as lines of JSON."""

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


class Logger:
    """Writes ``metrics.jsonl`` (one line a logged step) and ``tensorboard/`` in a run's folder.

    Args:
        folder: The run's folder.
        tensorboard: Write TensorBoard's event files.
        wandb: Makes the run on Weights & Biases, given the run's folder; None where there is none.
    """

    def __init__(
        self, folder: Path, tensorboard: bool = True, wandb: Callable[[Path], WandbLogger] | None = None
    ) -> None:
        self.metrics = folder / "metrics.jsonl"
        self.events = folder / "tensorboard"
        self.tensorboard = tensorboard
        self.wandb = wandb(folder) if wandb else None
        self._writer: Any = None

    def truncate_after(self, step: int) -> dict[str, float] | None:
        """Forget what a killed run wrote beyond this step, so that every step comes to be there once.

        Returns:
            This step's scalars where they were written whole; otherwise None, and they are to be written again.
        """
        lines = [_parsed(line) for line in self.metrics.read_text().splitlines()] if self.metrics.exists() else []
        kept = [line for line in lines if line and line["step"] <= step]
        if self.metrics.exists():
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        whole = kept[-1] if kept and kept[-1]["step"] == step else None
        last = step if whole else step - 1
        if self.events.exists():
            _rewrite_events(self.events, lambda event: not event.HasField("summary") or _stays(event, last))
        return whole

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write one step's scalars; call it once a step. Not-a-number becomes null in JSON.

        The line of JSON comes last: where it stands, the others have the step too.
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
        """Show a video of frames (T, H, W, 3) uint8, made smaller: the full one lies beside eval.json."""
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
        """Show a text, such as the configuration."""
        if self.writer:
            self.writer.add_text(name, f"```yaml\n{text}\n```", 0)
            self.writer.flush()

    def hparams(self, values: Mapping[str, bool | int | float | str], metrics: Mapping[str, float]) -> None:
        """The run's hyperparameters with its final metrics, for TensorBoard's HParams page."""
        if self.writer:
            from torch.utils.tensorboard.summary import hparams

            for summary in hparams(dict(values), dict(metrics)):
                self.writer.file_writer.add_summary(summary)
            self.writer.flush()

    def model(self, folder: Path) -> None:
        """Hand on the checkpoint in a folder, where the run's models are kept elsewhere too."""
        if self.wandb:
            self.wandb.model(folder)

    def close(self) -> None:
        """Write what is still in memory."""
        if self._writer:
            self._writer.close()
        if self.wandb:
            self.wandb.close()

    @property
    def writer(self) -> Any:
        """TensorBoard's writer, made at first use so that a rewind comes before it."""
        if self._writer is None and self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.events))
        return self._writer


class NullLogger(Logger):
    """Writes nothing: the logger of a process beside the one that tells."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, tensorboard=False)

    def truncate_after(self, step: int) -> None:
        """Leave what another process wrote."""

    def scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Forget them."""


def _gif(frames: np.ndarray, fps: float) -> bytes:
    """An animation that TensorBoard shows as an image, of at most MAX_FRAMES frames and MAX_WIDTH pixels."""
    every = -(-len(frames) // MAX_FRAMES)
    pictures = [Image.fromarray(frame) for frame in frames[::every]]
    for picture in pictures:
        picture.thumbnail((MAX_WIDTH, MAX_WIDTH))
    buffer = io.BytesIO()
    duration = round(1000 * every / fps)
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0)
    return buffer.getvalue()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # a kill cut it short


def _stays(event: Any, last: int) -> bool:
    """Whether a summary belongs to a step up to the last; hyperparameters are written anew at the end of a run."""
    return event.step <= last and not any(value.tag.startswith("_hparams_/") for value in event.summary.value)


def _rewrite_events(folder: Path, keep: Callable[[Any], bool]) -> None:
    """Keep only some events of all event files, in one new file."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.record_writer import RecordWriter

    files = sorted(folder.glob("events.out.tfevents.*"))
    if not files:
        return
    records = (record for path in files for record in RawEventFileLoader(str(path)).Load())
    # A kill between the two last steps below leaves records twice; a dict keeps each once, in order.
    kept = dict.fromkeys(record for record in records if keep(Event.FromString(record)))
    temporary = folder / f".rewind.{os.getpid()}"
    with temporary.open("wb") as file:
        writer = RecordWriter(file)
        for record in kept:
            writer.write(record)
        writer.flush()
    temporary.replace(files[0])
    for path in files[1:]:
        path.unlink()
