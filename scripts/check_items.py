"""Compare what robolearn reads from a dataset with what a reference reader returned for it.

    scripts/check_items.py DATASET_DIR TRUTH.json...

TRUTH.json lists indices, time windows in seconds (``delta_timestamps``), tasks and maybe statistics; its
tensors lie beside it in NAME.u8.safetensors or NAME.safetensors, images under ``<key>.uint8``. Prints the
worst difference of each key; the exit status is 1 if any key differs. Pixels, numbers, indices and pads have to
be equal; statistics may differ by a millionth of their size, being sums in another order.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from robolearn.data import LeRobotDataset
from robolearn.errors import UserError
from robolearn.types import Batch, Window

STATS_TOLERANCE = 1e-6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder of the dataset")
    parser.add_argument("truth", nargs="+", type=Path, help="JSON files of the reference reader")
    parser.add_argument("--video-backend", default="av", choices=["av", "pyav", "torchcodec"])
    parser.add_argument("--pixels", type=float, default=0.0, help="largest difference allowed, of 255")
    parser.add_argument("--cache-dir", help="folder of decoded frames")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    misses = 0
    try:
        dataset = LeRobotDataset(
            root=args.dataset, video_backend=args.video_backend, cache="disk", cache_dir=args.cache_dir
        ).load(torch.device("cpu"))
        for path in args.truth:
            misses += check(dataset, path, args.pixels)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{misses} keys differ" if misses else "all keys are equal")
    return 1 if misses else 0


def check(dataset: LeRobotDataset, path: Path, pixels: float) -> int:
    """Compare one truth file; prints a line for each key and returns how many miss."""
    truth = json.loads(path.read_text())
    tensors = load_tensors(path)
    indices = torch.tensor(truth["indices"], dtype=torch.int64)
    items = read_items(dataset, indices, truth["delta_timestamps"])
    print(f"\n{path.name}: {len(indices)} items")
    report = Report()
    for key in sorted(tensors):
        report.tensor(key, items.get(key), tensors[key], pixels if key in dataset.meta.cameras else 0.0)
    report.line("task", dataset.task_of(indices) == truth["task"], "the texts")
    names = {*items, "task"}
    other = sorted(names ^ set(truth["item_key_order"]))
    report.line("item keys", not other, f"only on one side: {', '.join(other)}" if other else "the same")
    for key, (shape, dtype) in truth.get("tensors_per_item", {}).items():
        ours = items[key][0]
        same_kind = str(ours.dtype) == dtype or key in dataset.meta.cameras
        if list(ours.shape) != shape or not same_kind:
            report.line(key, False, f"an item is {list(ours.shape)} {ours.dtype}, not {shape} {dtype}")
    for name, ours in (("num_frames", dataset.num_frames), ("num_episodes", dataset.num_episodes)):
        if name in truth:
            report.line(name, ours == truth[name], f"{ours}, {truth[name]}")
    for key, values in (truth.get("stats") or {}).items():
        report.stats(key, dataset, values)
    return report.misses


def load_tensors(path: Path) -> Batch:
    """The tensors beside a truth file, images under the key of their camera."""
    for suffix in (".u8.safetensors", ".safetensors"):
        file = path.with_suffix(suffix)
        if file.is_file():
            return {key.removesuffix(".uint8"): value for key, value in load_file(file).items()}
    raise UserError(f"{path.with_suffix('.u8.safetensors')} is missing, which holds the tensors of {path}.")


def read_items(dataset: LeRobotDataset, indices: Tensor, windows: dict[str, list[float]]) -> Batch:
    """Items as the reference returns them: windows where it has them, single frames elsewhere."""
    items = dataset.batch(indices, Window(reward=(0,)))
    for key in [*dataset.spec.observation, "action", "next.reward"]:
        if key in items:
            items[key] = items[key][:, 0]
            del items[f"{key}_is_pad"]
    for key, seconds in windows.items():
        offsets = tuple(round(second * dataset.fps) for second in seconds)
        part = dataset.batch(indices, Window(offsets, offsets, offsets))
        items |= {name: part[name] for name in (key, f"{key}_is_pad")}
    return items


class Report:
    """Prints a line for each thing that is compared, and counts the misses."""

    def __init__(self):
        self.misses = 0

    def line(self, key: str, good: bool, text: str) -> None:
        """One line of the report."""
        self.misses += not good
        print(f"  {'ok  ' if good else 'MISS'} {key:36s} {text}")

    def tensor(self, key: str, ours: Tensor | None, theirs: Tensor, allowed: float) -> None:
        """Compare two tensors, which may differ by `allowed`."""
        if ours is None or ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            what = "missing" if ours is None else f"{list(ours.shape)} {ours.dtype}"
            return self.line(key, False, f"{what}, not {list(theirs.shape)} {theirs.dtype}")
        difference = (ours.double() - theirs.double()).abs()
        equal = torch.equal(ours, theirs) or (allowed > 0 and bool((difference <= allowed).all()))
        return self.line(key, equal, f"worst difference {float(difference.max()):g}")

    def stats(self, key: str, dataset: LeRobotDataset, theirs: dict[str, list]) -> None:
        """Compare a feature's statistics, in double precision."""
        ours = dataset.meta.stats.get(key, {})
        worst = 0.0
        for name, value in theirs.items():
            right = np.asarray(value, dtype=np.float64)
            left = ours.get(name)
            if left is None or left.size != right.size:
                return self.line(f"stats of {key}", False, f"{name} is missing or of another shape")
            scale = np.maximum(np.abs(right), 1.0)
            worst = max(worst, float((np.abs(left.reshape(right.shape) - right) / scale).max()))
        good = worst <= STATS_TOLERANCE
        return self.line(f"stats of {key}", good, f"worst relative difference {worst:.3g}")


if __name__ == "__main__":
    sys.exit(main())
