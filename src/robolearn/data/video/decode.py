"""Frames out of video files: every wanted frame once, files and parts of files at the same time.

A file is first read without decoding, which gives the times of its frames; each wanted time is matched with
the nearest frame. Then runs of frames between two key frames are decoded one after another, in parallel.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from robolearn.errors import UserError, first_line, one_line

WriteFrame = Callable[[int, np.ndarray], None]
"""Takes a row of the output and its image, uint8 (C, H, W)."""

FORMATS = {3: "rgb24", 1: "gray"}

# Threads inside of one small conversion cost more than they gain. Older PyAV has none and no such argument.
CONVERSION = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@dataclass(frozen=True)
class FrameRequest:
    """The frames to take from one file, in any order.

    Args:
        file: The video.
        times: Seconds of the file's own clock, float64 (n,).
        rows: Where each one goes in the output, int64 (n,).
        episodes: The episode of each one, for messages, int64 (n,).
        frames: Index of each frame in its episode, for messages, int64 (n,).
    """

    file: Path
    times: np.ndarray
    rows: np.ndarray
    episodes: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class DecodeSpan:
    """Frames to decode in one go: seek to `seek`, write each frame whose presentation time is in `rows`."""

    wanted: FrameRequest
    seek: int
    rows: dict[int, list[int]]


def cpu_count() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def request_error(wanted: FrameRequest, position: int | None, reason: str) -> UserError:
    """The error that names the file, and the wanted frame at `position` or, for None, every episode in it."""
    if position is None:
        first, last = int(wanted.episodes.min()), int(wanted.episodes.max())
        where = f"episode {first}" if first == last else f"episodes {first} to {last}"
    else:
        where = f"episode {int(wanted.episodes[position])}, frame {int(wanted.frames[position])}"
    return UserError(
        f"{wanted.file} ({where}) {reason}: fetch or write it again, or leave its episodes out with dataset.episodes.",
        key=str(wanted.file),
    )


def decode(requests: list[FrameRequest], shape: tuple[int, ...], tolerance_s: float, write: WriteFrame) -> None:
    """Decode with PyAV. `write` is called from several threads, once for each wanted frame.

    Args:
        requests: What is wanted of each file.
        shape: Shape (C, H, W) of the frames, from ``info.json``.
        tolerance_s: How far a frame may lie from the wanted time.
        write: Receives the frames.

    Raises:
        UserError: A file is missing, broken or truncated, holds no frame at a wanted time, or images of
            another size.
    """
    workers = cpu_count()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        plans = pool.map(lambda wanted: _plan(wanted, tolerance_s, workers), requests)
        runs = [run for plan in plans for run in plan]
        # Enough runs keep every core busy by themselves; threads inside of a decoder would only compete.
        threads = 1 if len(runs) >= workers else 0
        futures = [pool.submit(_decode_span, run, shape, threads, write) for run in runs]
        try:
            for future in futures:
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def count_frames(file: Path) -> int:
    """The frames of a video, counted without decoding.

    Raises:
        UserError: It is no video.
    """
    try:
        with av.open(str(file), "r") as container:
            return sum(packet.pts is not None for packet in container.demux(video=0))
    except (av.error.FFmpegError, OSError, IndexError, ValueError) as error:
        raise UserError(
            f"{file} is truncated or no video ({_reason(error)}): fetch or write it again.", key=str(file)
        ) from None


def _open(wanted: FrameRequest) -> Any:
    try:
        container = av.open(str(wanted.file), "r")
    except FileNotFoundError:
        raise request_error(wanted, None, "is missing") from None
    except (av.error.FFmpegError, OSError) as error:
        raise request_error(wanted, None, f"is truncated or no video ({_reason(error)})") from None
    if not container.streams.video:
        container.close()
        raise request_error(wanted, None, "holds no video stream")
    return container


def _reason(error: Exception) -> str:
    # FFmpeg's messages name the file again, which the sentence has already.
    return (getattr(error, "strerror", None) or one_line(error)).rstrip(".")


def _plan(wanted: FrameRequest, tolerance_s: float, workers: int) -> list[DecodeSpan]:
    """Match wanted times with the file's frames, and cut the work at key frames."""
    with _open(wanted) as container:
        stream = container.streams.video[0]
        base = float(stream.time_base)
        try:
            packets = [
                (packet.pts, packet.dts if packet.dts is not None else packet.pts, packet.is_keyframe)
                for packet in container.demux(stream)
                if packet.pts is not None
            ]
        except (av.error.FFmpegError, OSError) as error:
            raise request_error(wanted, None, f"is truncated or no video ({_reason(error)})") from None
    if not packets:
        raise request_error(wanted, None, "holds no frame")
    times = np.array(sorted(pts for pts, _, _ in packets), dtype=np.int64)
    nearest = _match(wanted, times, base, tolerance_s)
    keys = sorted((pts, dts) for pts, dts, is_key in packets if is_key) or [min(packets)[:2]]
    starts = np.array([pts for pts, _ in keys], dtype=np.int64)
    group = np.maximum(np.searchsorted(starts, nearest, side="right") - 1, 0)
    least = max(64, -(-len(nearest) // (4 * workers)))
    runs: list[DecodeSpan] = []
    previous = -2
    for position in np.argsort(nearest, kind="stable"):
        key = int(group[position])
        if key != previous and (key != previous + 1 or len(runs[-1].rows) >= least):
            runs.append(DecodeSpan(wanted, keys[key][1], {}))
        previous = key
        runs[-1].rows.setdefault(int(nearest[position]), []).append(int(position))
    return runs


def _match(wanted: FrameRequest, times: np.ndarray, base: float, tolerance_s: float) -> np.ndarray:
    """The presentation time, in ticks of the stream, of the frame nearest to each wanted time."""
    seconds = times * base
    after = np.clip(np.searchsorted(seconds, wanted.times), 1, max(len(times) - 1, 1))
    before = after - 1
    after = np.minimum(after, len(times) - 1)
    closer = np.abs(seconds[before] - wanted.times) <= np.abs(seconds[after] - wanted.times)
    index = np.where(closer, before, after)
    off = np.abs(seconds[index] - wanted.times)
    wrong = np.flatnonzero(~(off <= tolerance_s))
    if wrong.size:
        position = int(wrong[0])
        want, found = float(wanted.times[position]), float(seconds[index[position]])
        if want > seconds[-1]:
            raise request_error(
                wanted, position, f"is truncated: it ends at {seconds[-1]:.6g} s, before the frame at {want:.6g} s"
            )
        raise request_error(
            wanted,
            position,
            f"has no frame at {want:.6g} s: the nearest lies at {found:.6g} s, off by more than "
            f"dataset.tolerance_s={tolerance_s:g}",
        )
    return times[index]


def _decode_span(run: DecodeSpan, shape: tuple[int, ...], threads: int, write: WriteFrame) -> None:
    wanted, pending = run.wanted, dict(run.rows)
    converter = VideoReformatter()  # Kept over the frames: setting one up costs more than decoding a frame.
    with _open(wanted) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        try:
            container.seek(run.seek, stream=stream, backward=True)
            for frame in container.decode(stream):
                positions = pending.pop(frame.pts, None)
                if positions is None:
                    continue
                if frame.is_corrupt:
                    raise request_error(wanted, positions[0], "holds a damaged image")
                if (frame.height, frame.width) != shape[1:]:
                    raise request_error(
                        wanted,
                        positions[0],
                        f"holds images of {frame.height} x {frame.width}, but meta/info.json says "
                        f"{shape[1]} x {shape[2]}",
                    )
                image = converter.reformat(frame, format=FORMATS[shape[0]], **CONVERSION).to_ndarray()
                image = np.ascontiguousarray(image.reshape(*shape[1:], shape[0]).transpose(2, 0, 1))
                for position in positions:
                    write(int(wanted.rows[position]), image)
                if not pending:
                    break
        except av.error.FFmpegError as error:
            position = min(pending.values())[0] if pending else 0
            raise request_error(wanted, position, f"cannot be decoded ({_reason(error)})") from None
    if pending:
        position = min(pending.values())[0]
        raise request_error(wanted, position, f"is truncated or damaged: {len(pending)} frames do not decode")


def decode_torchcodec(
    requests: list[FrameRequest], shape: tuple[int, ...], tolerance_s: float, write: WriteFrame
) -> None:
    """Decode with torchcodec; arguments and errors as `decode`. Its images may differ from PyAV's."""
    try:
        from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"dataset.video_backend=torchcodec cannot be loaded ({first_line(error)}): install "
            "torchcodec and FFmpeg's libraries, or use dataset.video_backend=av.",
            key="dataset.video_backend",
        ) from None

    if shape[0] != 3:
        raise UserError(
            f"{requests[0].file} has {shape[0]} channel by meta/info.json, which torchcodec cannot give: "
            "use dataset.video_backend=av.",
            key=str(requests[0].file),
        )

    def one_file(wanted: FrameRequest) -> None:
        try:
            decoder = VideoDecoder(str(wanted.file), seek_mode="exact", num_ffmpeg_threads=1)
        except (ValueError, RuntimeError, OSError) as error:
            raise request_error(wanted, None, f"is missing, truncated or no video ({first_line(error)})") from None
        order = np.argsort(wanted.times, kind="stable")
        fps = float(decoder.metadata.average_fps or 1.0)
        for first in range(0, len(order), 64):
            part = order[first : first + 64]
            asked = (wanted.times[part] + 0.5 / fps).tolist()
            try:
                frames = decoder.get_frames_played_at(asked)
            except (ValueError, RuntimeError, IndexError) as error:
                reason = f"does not decode, or ends before a wanted frame ({first_line(error)})"
                raise request_error(wanted, int(part[-1]), reason) from None
            _match_found(wanted, part, frames.pts_seconds.numpy(), tolerance_s)
            images = frames.data.numpy()
            if images.shape[1:] != shape:
                height, width = images.shape[-2:]
                reason = f"holds images of {height} x {width}, but meta/info.json says {shape[1]} x {shape[2]}"
                raise request_error(wanted, int(part[0]), reason)
            for position, image in zip(part, images, strict=True):
                write(int(wanted.rows[position]), np.ascontiguousarray(image))

    with ThreadPoolExecutor(cpu_count(), thread_name_prefix="decode") as pool:
        for _ in pool.map(one_file, requests):
            pass


def _match_found(wanted: FrameRequest, part: np.ndarray, found: np.ndarray, tolerance_s: float) -> None:
    off = np.abs(found - wanted.times[part])
    wrong = np.flatnonzero(~(off <= tolerance_s))
    if wrong.size:
        position = int(part[wrong[0]])
        raise request_error(
            wanted,
            position,
            f"has no frame at {wanted.times[position]:.6g} s: the nearest lies at {found[wrong[0]]:.6g} s, off "
            f"by more than dataset.tolerance_s={tolerance_s:g}",
        )
