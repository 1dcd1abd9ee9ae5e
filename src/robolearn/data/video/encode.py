"""Episodes as video: encoded once, then joined and cut without decoding them again.

Defaults: H.264 at quality 18 with a key frame at every other frame and none that refers to a later one, so that any
frame is decoded from at most two packets, and episodes can be joined and cut as they are. What is lost is mostly the
colour resolution of yuv420p, which every player and decoder takes.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np

from robolearn.errors import UserError, one_of

Codec = Literal["libx264", "libsvtav1"]

CODEC_OPTIONS: dict[str, dict[str, str]] = {
    # One thread an encoder: episodes are encoded side by side, and the result does not depend on the machine.
    # x264's macroblock tree, of no use with key frames this near, reads what it has not written: equal frames became
    # unequal videos.
    "libx264": {"preset": "veryfast", "bf": "0", "threads": "1", "x264-params": "mbtree=0"},
    "libsvtav1": {"preset": "10", "svtav1-params": "lp=1"},
}


@dataclass(frozen=True)
class Clip:
    """The frames `start` to ``start + length - 1`` of a video, a file or its bytes."""

    source: Path | bytes
    length: int
    start: int = 0

    @property
    def size(self) -> int:
        """Bytes of the whole source."""
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size


@dataclass(frozen=True)
class VideoEncoder:
    """How frames become video.

    Args:
        codec: ``libx264``, or ``libsvtav1`` as LeRobot has it, which takes longer for the same quality.
        crf: Constant quality; smaller is better and larger. LeRobot's own sets have 30 with ``libsvtav1``.
    """

    codec: Codec = "libx264"
    crf: int = 18

    def __post_init__(self) -> None:
        one_of("video_codec", self.codec, CODEC_OPTIONS)
        if not 0 <= self.crf <= (51 if self.codec == "libx264" else 63):
            raise UserError(
                f"video_crf={self.crf} is out of {self.codec}'s range; 18 is close to lossless.", key="video_crf"
            )

    def __call__(self, frames: np.ndarray, fps: float) -> Clip:
        """Encode frames uint8 (T, C, H, W) of 3 channels and even height and width."""
        buffer = io.BytesIO()
        options = {**CODEC_OPTIONS[self.codec], "crf": str(self.crf), "g": "2"}
        with av.open(buffer, "w", format="mp4") as container:
            stream: Any = container.add_stream(self.codec, rate=exact_rate(fps), options=options)
            stream.height, stream.width = frames.shape[2:]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                image = np.ascontiguousarray(frame.transpose(1, 2, 0))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        return Clip(buffer.getvalue(), len(frames))


def exact_rate(fps: float) -> Fraction:
    """Frames a second as a fraction, such as 30000/1001 for 29.97."""
    return Fraction(fps).limit_denominator(1001)


def concat_clips(path: Path, clips: Iterable[Clip], fps: float) -> None:
    """Write clips one after another into one MP4; their packets are copied, not encoded again.

    Args:
        path: The new file.
        clips: Of one codec and size; each begins with a key frame.
        fps: Frame n of the file is shown at n / fps seconds.

    Raises:
        UserError: A clip begins between key frames, or has too few frames.
    """
    rate, done, head = exact_rate(fps), 0, None
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        stream: Any = None
        for clip in clips:
            with _open(clip) as container:
                source = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(source, opaque=True)
                    stream.time_base = source.time_base
                    head = _stream_header(source)
                elif _stream_header(source) != head:
                    raise UserError(
                        f"{_name(clip)} was encoded in another way than what it is to be joined with.",
                        key=_name(clip),
                    )
                for packet in _packets(container, source, clip, rate):
                    # Ticks from the start of the clip, in units of the new stream, behind what is there.
                    for name in ("pts", "dts"):
                        seconds = (getattr(packet, name) * source.time_base) + Fraction(done - clip.start) / rate
                        setattr(packet, name, round(seconds / stream.time_base))
                    packet.duration = round(1 / rate / stream.time_base)
                    packet.time_base = stream.time_base
                    packet.stream = stream
                    output.mux(packet)
            done += clip.length


def _stream_header(stream: Any) -> tuple[Any, ...]:
    """What has to be equal in streams that share a file; AV1 repeats the rest of its head in every key frame."""
    codec = stream.codec_context
    rest = None if stream.codec.canonical_name == "av1" else codec.extradata
    return stream.codec.canonical_name, codec.width, codec.height, codec.pix_fmt, rest


def _open(clip: Clip) -> Any:
    source = io.BytesIO(clip.source) if isinstance(clip.source, bytes) else str(clip.source)
    return av.open(source, "r")


def _packets(container: Any, stream: Any, clip: Clip, rate: Fraction) -> Iterator[Any]:
    """The packets of a clip's frames, in the order of decoding."""
    first, last = clip.start, clip.start + clip.length
    half = Fraction(1, 2)
    found = 0
    for packet in container.demux(stream):
        if packet.pts is None or packet.dts is None:
            continue
        frame = packet.pts * stream.time_base * rate
        if first - half < frame < last - half:
            if not found and not packet.is_keyframe:
                raise UserError(
                    f"{_name(clip)} has no key frame at frame {first}, so it can't be cut there.", key=_name(clip)
                )
            found += 1
            yield packet
    if found != clip.length:
        raise UserError(
            f"{_name(clip)} holds {found} of the {clip.length} frames that begin at frame {first}.",
            key=_name(clip),
        )


def begins_with_key_frame(clip: Clip, fps: float) -> bool:
    """Whether a clip can be cut out without decoding it."""
    rate = exact_rate(fps)
    with _open(clip) as container:
        stream = container.streams.video[0]
        keys = (packet.pts for packet in container.demux(stream) if packet.pts is not None and packet.is_keyframe)
        return any(round(pts * stream.time_base * rate) == clip.start for pts in keys)


def _name(clip: Clip) -> str:
    return "An encoded episode" if isinstance(clip.source, bytes) else str(clip.source)


def video_info(clip: Clip, fps: float) -> dict[str, Any]:
    """What ``info.json`` says of a camera's videos."""
    with _open(clip) as container:
        stream = container.streams.video[0]
        whole = int(fps) if float(fps).is_integer() else fps
        return {
            "video.height": stream.height,
            "video.width": stream.width,
            "video.codec": stream.codec.canonical_name,
            "video.pix_fmt": stream.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": whole,
            "video.channels": 1 if "gray" in stream.pix_fmt else 3,
            "has_audio": False,
        }
