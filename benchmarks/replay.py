"""Samples a second of mixed batches, half demonstrations and half collected, by the number of episodes in the buffer.

    python benchmarks/replay.py [--episodes 10 100 1000] [--num-workers 0] [--device cpu] [--json OUT]

The shapes are those of TD-MPC on xArm: horizon 5, batches of 256, episodes of 25 steps, a state of 4 numbers, with and
without an image of 84 x 84. All sizes are measured alternately in one process, so that their ratios also hold on a busy
machine; a rate is that of the fastest of the rounds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from robolearn.data import BatchSampler, Loader
from robolearn.data.offline_online_loader import OfflineOnlineLoader
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.episodes import Episode
from robolearn.types import Batch, Feature, Spec, Window

HORIZON, STEPS, BATCH_SIZE = 5, 25, 256
WINDOW = Window(tuple(range(HORIZON + 1)), tuple(range(HORIZON)), tuple(range(HORIZON)))
STATE = {"observation.state": Feature("STATE", (4,))}
IMAGE = {"observation.image": Feature("VISUAL", (3, 84, 84))}
SPECS = {
    "state": Spec(STATE, Feature("ACTION", (4,)), 15.0),
    "state and image": Spec(STATE | IMAGE, Feature("ACTION", (4,)), 15.0),
}


def episode(seed: int, spec: Spec) -> Episode:
    """An episode of random numbers."""
    random = np.random.default_rng(seed)
    observations = {}
    for key, feature in spec.observation.items():
        shape = (STEPS + 1, *feature.shape)
        is_image = feature.kind == "VISUAL"
        observations[key] = random.integers(256, size=shape, dtype="u1") if is_image else random.random(shape, "f4")
    actions, rewards = random.random((STEPS, 4), "f4"), random.random(STEPS)
    return Episode(seed, actions, rewards, np.zeros(STEPS, bool), False, True, observations)


def filled(folder: Path, spec: Spec, episodes: int, device: torch.device) -> ReplayBuffer:
    """A buffer that holds as many episodes as it can."""
    replay = ReplayBuffer(folder, spec, episodes * (STEPS + 1), device)
    for seed in range(episodes):
        replay.add(episode(seed, spec))
    return replay


def mixed_batches(
    replay: ReplayBuffer, demonstrations: ReplayBuffer, device: torch.device, num_workers: int
) -> Iterator[Batch]:
    """Mixed batches."""
    indices = torch.arange(demonstrations.frames).view(-1, STEPS + 1)[:, :STEPS].flatten()

    def loader(batch_size: int) -> Loader:
        return Loader(demonstrations, BatchSampler(indices, batch_size, 0), WINDOW, device, num_workers)

    half = BATCH_SIZE // 2
    whole, recorded = loader(BATCH_SIZE), loader(half)
    mixed = OfflineOnlineLoader(whole, recorded, replay, half, WINDOW, device, 0, 0, 0, num_workers)
    return mixed.iter_from(0)


def seconds(batches: Iterator[Batch], count: int, device: torch.device) -> float:
    """Seconds that `count` batches take."""
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def main() -> None:
    """Measure every number of episodes, with and without images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--json", type=Path, help="file for the result")
    args = parser.parse_args()
    result: dict[str, dict[str, float]] = {}
    for name, spec in SPECS.items():
        with tempfile.TemporaryDirectory() as folder:
            demonstrations = filled(Path(folder, "demonstrations"), spec, 20, args.device)
            streams = {
                count: mixed_batches(
                    filled(Path(folder, str(count)), spec, count, args.device),
                    demonstrations,
                    args.device,
                    args.num_workers,
                )
                for count in args.episodes
            }
            best = dict.fromkeys(streams, float("inf"))
            for _ in range(args.rounds + 1):  # the first one warms up and is as good as any
                for count, batches in streams.items():
                    best[count] = min(best[count], seconds(batches, args.batches, args.device))
            for batches in streams.values():
                batches.close()  # type: ignore[attr-defined]
        rates = {count: BATCH_SIZE * args.batches / each for count, each in best.items()}
        result[name] = {str(count): round(rate) for count, rate in rates.items()}
        first = next(iter(rates.values()))
        for count, rate in rates.items():
            print(f"{name:<16} {count:>6} episodes {rate:>10,.0f} samples/s, {rate / first:.2f} of the first")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
