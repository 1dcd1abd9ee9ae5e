"""Open datasets with LeRobot's own loader, and compare what it returns with what robolearn reads.

    scripts/check_lerobot_loader.py DATASET... [--python PYTHON] [--frames N]

PYTHON is the interpreter of an environment with ``lerobot==0.4.4``, where LeRobot's part runs; robolearn's part runs in
this one. Compares up to N frames of each set, spread over all its episodes: values have to be equal, images may
differ by one step of 255, since the decoders' colour conversions round differently. Ends with status 1 if any differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# What LeRobot's environment runs: neither robolearn nor this file can be imported there.
LOADER = """
import sys
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
folder, out, count = sys.argv[1:]
dataset = LeRobotDataset("local/" + folder.rstrip("/").rpartition("/")[2], root=folder, video_backend="pyav")
indices = np.unique(np.linspace(0, len(dataset) - 1, int(count)).astype(int))
items = [dataset[int(index)] for index in indices]
values = {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0] if key != "task"}
stats = dataset.meta.stats.items()
stats = {f"stats/{key}/{name}": np.asarray(value) for key, of in stats for name, value in of.items()}
np.savez(out, indices=indices, task=np.array([item["task"] for item in items]), **values, **stats)
print(f"{len(dataset)} frames, {dataset.num_episodes} episodes, keys {', '.join(sorted(values))}")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="+", type=Path, help="folders of datasets in format v3.0")
    parser.add_argument("--python", default="python", help="interpreter with lerobot==0.4.4")
    parser.add_argument("--frames", type=int, default=200, help="how many frames to compare")
    args = parser.parse_args()
    misses = 0
    for folder in args.dataset:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / "items.npz"
            command = [args.python, "-c", LOADER, str(folder.resolve()), str(out), str(args.frames)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
            if done.returncode:
                print(f"MISS {folder}: LeRobot's loader failed: {done.stderr.strip().splitlines()[-1]}")
                misses += 1
                continue
            print(f"{folder}: LeRobot's loader gives {done.stdout.strip()}")
            misses += compare(folder, dict(np.load(out)))
    print(f"{misses} keys differ" if misses else "all is equal")
    return 1 if misses else 0


def compare(folder: Path, theirs: dict[str, np.ndarray]) -> int:
    """Compare a set's frames; prints a line for each key and returns how many differ."""
    import torch

    from robolearn.data import LeRobotDataset
    from robolearn.types import Window

    dataset = LeRobotDataset(root=str(folder)).load(torch.device("cpu"))
    indices = torch.from_numpy(theirs.pop("indices"))
    task = theirs.pop("task").tolist()
    misses = line("task", dataset.task_of(indices) == task, "the texts")
    batch = dataset.batch(indices, Window(reward=(0,)))
    for key in sorted(key for key in theirs if not key.startswith("stats/")):
        if key not in batch:
            misses += line(key, False, "missing in what robolearn reads")
            continue
        ours = batch[key].numpy()
        if f"{key}_is_pad" in batch:
            ours = ours[:, 0]
        want = theirs[key]
        if key in dataset.meta.cameras:
            ours, want = ours.astype(np.float64), want * 255.0
        worst = float(np.abs(ours.astype(np.float64) - want.reshape(ours.shape)).max())
        misses += line(key, worst <= (1.01 if key in dataset.meta.cameras else 0), f"worst difference {worst:g}")
    for key in sorted(key for key in theirs if key.startswith("stats/")):
        _, name, kind = key.split("/")
        if kind in ("min", "max", "mean", "std"):
            ours = dataset.meta.stats[name][kind]
            if not np.allclose(ours, theirs[key].reshape(ours.shape), rtol=1e-9):
                misses += line(key, False, "differs")
    return misses


def line(key: str, good: bool, text: str) -> int:
    """Print a line of the report; 1 for a miss."""
    print(f"  {'ok  ' if good else 'MISS'} {key:36s} {text}")
    return not good


if __name__ == "__main__":
    sys.exit(main())
