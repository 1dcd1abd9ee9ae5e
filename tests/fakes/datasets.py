"""Tiny datasets in LeRobot's format, for tests: seeded noise with the features of PushT."""

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
TASK = "Push the T-shaped block onto the T-shaped target."
Version = Literal["v2.0", "v2.1", "v3.0"]


def write_dataset(
    folder: Path,
    version: Version = "v3.0",
    episodes: int = 3,
    length: int = 20,
    image_size: int = 96,
    image_dtype: Literal["video", "image"] | None = "video",
    keypoints: bool = False,
    *,
    cameras: tuple[str, ...] = ("observation.image",),
    codec: str = "mpeg4",
    seed: int = 0,
) -> Path:
    """Write a dataset with ``observation.state`` (2,), ``action`` (2,), images and maybe keypoints (16,).

    Episode e has `length` + e frames. Returns `folder`.
    """
    rng = np.random.default_rng(seed)
    folder = Path(folder)
    lengths = [length + episode for episode in range(episodes)]
    records = [
        _episode(e, sum(lengths[:e]), n, image_size, image_dtype, keypoints, cameras, rng)
        for e, n in enumerate(lengths)
    ]
    (folder / "meta").mkdir(parents=True)
    _write_info(folder, version, lengths, image_size, image_dtype, keypoints, cameras)
    write = _write_v3 if version == "v3.0" else _write_v2
    write(folder, version, records, image_dtype, cameras, codec)
    return folder


def read_rows(path: Path) -> dict[str, Any]:
    """The columns of a parquet file as lists, to be changed and given to `write_rows`."""
    return pq.read_table(path).to_pydict()


def write_rows(path: Path, columns: dict[str, Any]) -> None:
    """Write columns as a parquet file, with the number types of the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({key: _array(key, values) for key, values in columns.items()}), path)


def _array(key: str, values: Any) -> pa.Array:
    first = values[0]
    if key.startswith(("videos/", "data/", "meta/", "stats/")) or isinstance(first, str | dict):
        return pa.array(values)
    kind = {float: pa.float32(), int: pa.int64(), bool: pa.bool_()}
    if isinstance(first, list):
        return pa.array(values, pa.list_(kind.get(type(first[0]), pa.string())))
    return pa.array(values, kind[type(first)])


def _episode(
    index: int, start: int, length: int, size: int, image_dtype, keypoints: bool, cameras, rng
) -> dict[str, Any]:
    action = rng.uniform(100, 400, (length, 2)).astype(np.float32)
    columns: dict[str, Any] = {"observation.state": (action + 1).tolist(), "action": action.tolist()}
    if keypoints:
        columns["observation.environment_state"] = rng.uniform(0, 512, (length, 16)).tolist()
    columns["next.reward"] = rng.uniform(0, 1, length).tolist()
    columns["next.done"] = [frame == length - 1 for frame in range(length)]
    columns["next.success"] = [False] * length
    columns["timestamp"] = [frame / FPS for frame in range(length)]
    columns["frame_index"] = list(range(length))
    columns["episode_index"] = [index] * length
    columns["index"] = list(range(start, start + length))
    columns["task_index"] = [0] * length
    images = {key: _images(length, size, rng) for key in cameras} if image_dtype else {}
    return {"columns": columns, "images": images, "length": length}


def _images(length: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth images (length, H, W, 3): a square that moves over a shaded ground."""
    ground = np.linspace(80, 200, size, dtype=np.uint8)[None, :, None].repeat(size, 0).repeat(3, 2)
    frames = np.stack([ground] * length)
    for image in frames:
        y, x = rng.integers(0, size - size // 4, 2)
        image[y : y + size // 4, x : x + size // 4] = rng.integers(0, 255, 3)
    return frames


def _stats(columns: dict[str, Any], images: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    stats = {}
    for key, values in columns.items():
        array = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        stats[key] = _moments(array, (0,), ())
    for key, frames in images.items():
        stats[key] = _moments(frames / 255.0, (0, 1, 2), (3, 1, 1))
    return stats


def _moments(array: np.ndarray, axes: tuple[int, ...], shape: tuple[int, ...]) -> dict[str, Any]:
    names = {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}
    moments = {name: np.asarray(f(array, axis=axes)) for name, f in names.items()}
    result: dict[str, Any] = {
        name: (value.reshape(shape) if shape else value).tolist() for name, value in moments.items()
    }
    return result | {"count": [len(array)]}


def _merged_stats(records: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {key: sum((r["columns"][key] for r in records), []) for key in records[0]["columns"]}
    images = {key: np.concatenate([r["images"][key] for r in records]) for key in records[0]["images"]}
    return _stats(columns, images)


def _write_info(folder, version, lengths, size, image_dtype, keypoints, cameras) -> None:
    def feature(dtype: str, shape: list[int], names: Any = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape, "names": names}

    features = {}
    for key in cameras if image_dtype else ():
        features[key] = feature(image_dtype, [size, size, 3], ["height", "width", "channel"])
    if keypoints:
        features["observation.environment_state"] = feature("float32", [16])
    features |= {"observation.state": feature("float32", [2]), "action": feature("float32", [2])}
    features["next.reward"] = feature("float32", [1])
    features |= {key: feature("bool", [1]) for key in ("next.done", "next.success")}
    features["timestamp"] = feature("float32", [1])
    features |= {key: feature("int64", [1]) for key in ("frame_index", "episode_index", "index", "task_index")}
    newest = version == "v3.0"
    data, video = "episode_{episode_index:06d}", "videos/chunk-{episode_chunk:03d}/{video_key}/"
    info = {
        "codebase_version": version,
        "robot_type": "unknown",
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 1,
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if newest
        else "data/chunk-{episode_chunk:03d}/" + data + ".parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if newest
        else video + data + ".mp4",
        "features": features,
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info, indent=2))


def _write_v3(folder, version, records, image_dtype, cameras, codec) -> None:
    columns = _columns_with_images(records, image_dtype)
    write_rows(folder / "data/chunk-000/file-000.parquet", columns)
    table: dict[str, list[Any]] = {}
    start = 0
    for index, record in enumerate(records):
        row = {"episode_index": index, "data/chunk_index": 0, "data/file_index": 0}
        row |= {"dataset_from_index": start, "dataset_to_index": start + record["length"]}
        for key in cameras if image_dtype == "video" else ():
            row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": 0}
            row |= {f"videos/{key}/from_timestamp": start / FPS}
            row |= {f"videos/{key}/to_timestamp": (start + record["length"]) / FPS}
        row |= {"tasks": [TASK], "length": record["length"]}
        start += record["length"]
        for key, value in row.items():
            table.setdefault(key, []).append(value)
    write_rows(folder / "meta/episodes/chunk-000/file-000.parquet", table)
    tasks = pa.table({"task_index": [0], "__index_level_0__": [TASK]})
    pq.write_table(tasks, folder / "meta/tasks.parquet")
    (folder / "meta/stats.json").write_text(json.dumps(_merged_stats(records)))
    for key in cameras if image_dtype == "video" else ():
        frames = np.concatenate([record["images"][key] for record in records])
        write_video(folder / "videos" / key / "chunk-000/file-000.mp4", frames, codec)


def _write_v2(folder, version, records, image_dtype, cameras, codec) -> None:
    lines = [{"episode_index": i, "tasks": [TASK], "length": r["length"]} for i, r in enumerate(records)]
    _write_lines(folder / "meta/episodes.jsonl", lines)
    _write_lines(folder / "meta/tasks.jsonl", [{"task_index": 0, "task": TASK}])
    if version == "v2.1":
        stats = [_stats(r["columns"], r["images"]) for r in records]
        lines = [{"episode_index": index, "stats": each} for index, each in enumerate(stats)]
        _write_lines(folder / "meta/episodes_stats.jsonl", lines)
    else:
        (folder / "meta/stats.json").write_text(json.dumps(_merged_stats(records)))
    for index, record in enumerate(records):
        columns = _columns_with_images([record], image_dtype)
        write_rows(folder / f"data/chunk-000/episode_{index:06d}.parquet", columns)
        for key in cameras if image_dtype == "video" else ():
            file = folder / f"videos/chunk-000/{key}/episode_{index:06d}.mp4"
            write_video(file, record["images"][key], codec)


def _columns_with_images(records: list[dict[str, Any]], image_dtype) -> dict[str, Any]:
    columns = {key: sum((r["columns"][key] for r in records), []) for key in records[0]["columns"]}
    if image_dtype == "image":
        for key in records[0]["images"]:
            frames = [image for record in records for image in record["images"][key]]
            columns[key] = [{"bytes": _png(image), "path": f"{i}.png"} for i, image in enumerate(frames)]
    return columns


def _png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_video(path: Path, frames: np.ndarray, codec: str = "mpeg4") -> None:
    """Encode frames (N, H, W, 3) at FPS frames a second, a key frame at every other one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.gop_size, stream.codec_context.time_base = 2, Fraction(1, FPS)
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
