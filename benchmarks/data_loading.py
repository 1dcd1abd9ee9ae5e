"""How fast batches come from the decoded frames: two frames of observations and 16 actions a sample.

    python benchmarks/data_loading.py dataset.root=DIR [batch_size=64] [num_workers=0,1,2] [batches=500] [device=cpu]

Every key of the ``dataset`` node may be given. With ``first=true`` the frames are decoded anew into a folder that is
removed afterwards, and the seconds of that are printed. Prints a table and, as its last line, the best row as JSON.
"""

import json
import sys
import tempfile
import time
from itertools import islice
from typing import Any

import torch
from omegaconf import OmegaConf

from robolearn.data import BatchSampler, LeRobotDataset, Loader
from robolearn.types import Window

WINDOW = Window(observation=(-1, 0), action=tuple(range(-1, 15)))
DEFAULTS = {"dataset": {}, "batch_size": 64, "num_workers": "0,1,2", "batches": 500, "device": "cpu", "first": False}


def main() -> None:
    """Measure with every number of workers asked for."""
    config = OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist(sys.argv[1:]))
    options: dict[str, Any] = {str(key): value for key, value in config.dataset.items()}
    assert isinstance(options, dict)
    options = {str(key): value for key, value in options.items()}
    device = torch.device(config.device)
    result = {}
    if config.first:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            LeRobotDataset(**{**options, "cache_dir": folder}).load(device)
            result["first_decode_s"] = round(time.perf_counter() - started, 2)
        print(f"decoded in {result['first_decode_s']:.1f} s")
    started = time.perf_counter()
    dataset = LeRobotDataset(**options).load(device)
    opened = time.perf_counter() - started
    print(f"{dataset.num_frames} frames, ready after {opened:.1f} s; batches of {config.batch_size}")
    print(f"{'num_workers':>11} {'ms/batch':>9} {'samples/s':>10}")
    rows = []
    for workers in map(int, str(config.num_workers).split(",")):
        seconds = measure(dataset, device, workers, config.batch_size, config.batches)
        rows.append((config.batch_size / seconds, workers))
        print(f"{workers:>11} {1e3 * seconds:>9.2f} {rows[-1][0]:>10.0f}")
    best, workers = max(rows)
    result |= {"samples_per_s": round(best), "num_workers": workers, "open_s": round(opened, 2)}
    print(json.dumps(result | {"batch_size": config.batch_size, "device": str(device)}))


def measure(dataset: LeRobotDataset, device: torch.device, workers: int, batch_size: int, count: int) -> float:
    """Seconds a batch, after some that do not count."""
    sampler = BatchSampler(dataset.valid_indices(0), batch_size, seed=0)
    batches = Loader(dataset, sampler, WINDOW, device, workers).iter_from(0)
    for _ in islice(batches, 20):
        pass
    wait(device)
    started = time.perf_counter()
    for _ in islice(batches, count):
        pass
    wait(device)
    return (time.perf_counter() - started) / count


def wait(device: torch.device) -> None:
    """Synchronise with the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
