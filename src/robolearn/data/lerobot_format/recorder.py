"""One episode on its way into a dataset; made where it was simulated, so nothing here imports torch."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from PIL import Image

from robolearn.data.lerobot_format.episode_stats import image_stats
from robolearn.data.video.encode import Clip, VideoEncoder
from robolearn.episodes import Episode
from robolearn.types import Spec

InfoFeature = dict[str, Any]
"""A feature of ``info.json``: dtype, shape and names."""


def feature(dtype: str, shape: Sequence[int], names: Any = None) -> InfoFeature:
    """A feature as ``info.json`` has it."""
    return {"dtype": dtype, "shape": list(shape), "names": names}


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode to be written.

    Attributes:
        columns: Values (T, *shape) of every feature but videos and those that the writer adds; an Arrow table holds
            what arrays can't, such as encoded images.
        task: The instruction; a list has one for every frame.
        clips: The video of each camera.
        stats: Statistics of the cameras; those of numbers are computed.
        extra: Further columns of the table of episodes.
        times: Seconds since the episode's start (T,), if not on the raster of the frame rate.
    """

    columns: Mapping[str, np.ndarray] | pa.Table
    task: str | Sequence[str]
    clips: Mapping[str, Clip] = field(default_factory=dict)
    stats: Mapping[str, dict[str, np.ndarray]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    times: np.ndarray | None = None


@dataclass(frozen=True)
class Recorder:
    """Turns episodes into records.

    Args:
        spec: The features of the episodes, and their frame rate.
        task: The instruction.
        encoder: How images become video; None keeps them as PNG, without loss, among the numbers.
        label: Which action is recorded as ``action`` where noise was added: the one that was meant (``clean``), for
            imitation, or the one that was ``executed``, for reinforcement learning. The other one is recorded as
            ``executed_action`` or ``clean_action``.
        noisy: Whether noise was added.
    """

    spec: Spec
    task: str
    encoder: VideoEncoder | None = field(default_factory=VideoEncoder)
    label: Literal["clean", "executed"] = "clean"
    noisy: bool = False

    @property
    def other_action(self) -> str | None:
        """The key of the action that is not the label; None where both are one."""
        return f"{'executed' if self.label == 'clean' else 'clean'}_action" if self.noisy else None

    def features(self, success: bool) -> dict[str, InfoFeature]:
        """The features of ``info.json``.

        Args:
            success: Whether the simulator reports success.
        """
        features: dict[str, InfoFeature] = {}
        for key, observed in self.spec.observation.items():
            if observed.is_image:
                channels, height, width = observed.shape
                kind = "video" if self.encoder else "image"
                features[key] = feature(kind, [height, width, channels], ["height", "width", "channels"])
            else:
                features[key] = feature("float32", observed.shape)
        features["action"] = feature("float32", self.spec.action.shape)
        if self.other_action:
            features[self.other_action] = features["action"]
        features["next.reward"] = feature("float32", [1])
        features["next.done"] = feature("bool", [1])
        if success:
            features["next.success"] = feature("bool", [1])
        return features

    def __call__(self, episode: Episode, clean: np.ndarray) -> EpisodeRecord:
        """The record of an episode with its observations; `clean` (T, A) are the actions before noise."""
        assert episode.observations is not None
        length = len(episode)
        columns: dict[str, Any] = {}
        clips, stats = {}, {}
        for key, values in episode.observations.items():
            frames = values[:length]
            if not self.spec.observation[key].is_image:
                columns[key] = frames
                continue
            stats[key] = image_stats(frames)
            if self.encoder:
                clips[key] = self.encoder(frames, self.spec.fps)
            else:
                columns[key] = pa.array([{"bytes": _png(frame), "path": None} for frame in frames], IMAGE_TYPE)
        actions = {"clean": clean, "executed": episode.actions}
        columns["action"] = actions[self.label]
        if self.other_action:
            columns[self.other_action] = actions[self.other_action.removesuffix("_action")]
        columns["next.reward"] = episode.rewards.astype(np.float32)
        columns["next.done"] = np.arange(length) == length - 1
        if episode.successes is not None:
            columns["next.success"] = episode.successes
        return EpisodeRecord(columns, self.task, clips, stats, {"seed": episode.seed})


IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""Images in parquet files, as the package datasets reads them."""


def _png(frame: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)).squeeze()).save(stream, format="PNG")
    return stream.getvalue()
