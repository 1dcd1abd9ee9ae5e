"""Frames decoded in parallel runs are those of a decoder that goes through the file from its start."""

from pathlib import Path

import av
import numpy as np
import pytest

from robolearn.data.video import decode


def encode(path: Path, codec: str, count: int, gop: int, b_frames: int) -> None:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        options = {"bf": str(b_frames)} if b_frames else {}
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", gop
        picture = rng.integers(0, 255, (32, 48, 3), dtype=np.uint8)
        for number in range(count):
            picture = np.roll(picture, 1, axis=1)
            picture[number % 32] = number % 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def sequential(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(("codec", "gop", "b_frames"), [("libx264", 2, 0), ("libx264", 12, 3), ("mpeg4", 300, 0)])
@pytest.mark.parametrize("chosen", ["all", "some", "backwards"])
def test_runs_equal_one_pass(tmp_path, codec, gop, b_frames, chosen):
    path = tmp_path / "a.mp4"
    encode(path, codec, 200, gop, b_frames)
    frames = {"all": np.arange(200), "some": np.array([0, 3, 77, 78, 150, 199, 3]), "backwards": np.arange(200)[::-1]}
    index = frames[chosen]
    out = np.zeros((len(index), 3, 32, 48), np.uint8)
    rows, owner = np.arange(len(index)), np.zeros(len(index), np.int64)
    wanted = decode.FrameRequest(path, index / 30, rows, owner, index)
    decode.decode([wanted], (3, 32, 48), 1e-4, out.__setitem__)
    assert np.array_equal(out, sequential(path)[index])


def test_one_channel(tmp_path):
    path = tmp_path / "a.mp4"
    encode(path, "mpeg4", 5, 2, 0)
    out = np.zeros((5, 1, 32, 48), np.uint8)
    wanted = decode.FrameRequest(path, np.arange(5) / 30, np.arange(5), np.zeros(5, np.int64), np.arange(5))
    decode.decode([wanted], (1, 32, 48), 1e-4, out.__setitem__)
    assert out.std() > 0
