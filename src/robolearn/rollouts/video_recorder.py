"""Videos of what happened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from robolearn.episodes import FrameSink


@contextmanager
def mp4(path: Path, fps: float) -> Iterator[FrameSink]:
    """A file to which frames (H, W, 3) uint8 are given one by one; H.264 in yuv420p, which browsers play.

    Odd sizes lose their last row or column, since yuv420p halves both. The file takes its name when it is whole.

    Raises:
        OSError: The file can't be written.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
            stream.pix_fmt = "yuv420p"
            stream.options = {"crf": "23", "preset": "superfast"}
            stream.width = 0

            def write(frame: np.ndarray) -> None:
                height, width = (size // 2 * 2 for size in frame.shape[:2])
                if stream.width == 0:
                    stream.width, stream.height = width, height
                image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                container.mux(stream.encode(image))

            yield write
            if stream.width:
                container.mux(stream.encode())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shrink(frame: np.ndarray, largest: int) -> np.ndarray:
    """A frame (H, W, 3) uint8 reduced by a whole factor to at most `all_reduce_max` pixels a side, by averaging."""
    factor = -(-max(frame.shape[:2]) // largest)
    if factor == 1:
        return frame
    height, width = (size // factor for size in frame.shape[:2])
    # Ten times as fast as numpy's mean over two axes, and rounded.
    total = np.full((height, width, 3), factor * factor // 2, np.uint32)
    for row in range(factor):
        for column in range(factor):
            total += frame[row : height * factor : factor, column : width * factor : factor]
    return (total // (factor * factor)).astype(np.uint8)


def grid(videos: Sequence[Sequence[np.ndarray]], columns: int) -> np.ndarray:
    """Videos of frames (H, W, 3) uint8 side by side, row by row, as one of (T, rows * H, columns * W, 3).

    The short ones rest on their last frame; what no video fills is black.
    """
    height, width, _ = videos[0][0].shape
    rows = -(-len(videos) // columns)
    together = np.zeros((max(map(len, videos)), rows * height, columns * width, 3), np.uint8)
    for i, video in enumerate(videos):
        top, left = i // columns * height, i % columns * width
        tile = together[:, top : top + height, left : left + width]
        tile[: len(video)] = video
        tile[len(video) :] = video[-1]
    return together
