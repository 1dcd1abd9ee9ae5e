#!/usr/bin/env python
"""How well a demonstrator does, over a range of seeds.

    scripts/check_demonstrators.py pusht --seeds 3000 3100
    scripts/check_demonstrators.py pusht speed=25 --seeds 0 20
    scripts/check_demonstrators.py pusht --seeds 3 4 --strip pusht.png

Prints the success rate with its 95 % interval (Wilson, 1927), steps, seconds of an episode without rendering, and the
largest change from an action to the next. The environment is that of the demonstrator's name; `--strip` draws the
first episode. The exit status is 1 below 95 % success.
"""

import argparse
import functools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
from PIL import Image
from tqdm import tqdm

from robolearn.collecting.experts import Demonstrator
from robolearn.config.build import build
from robolearn.config.compose import compose, parse
from robolearn.config.validate import check_targets, refuse
from robolearn.errors import UserError
from robolearn.system.paths import conf_dir


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(file.stem for file in (conf_dir() / "demonstrator").glob("*.yaml"))
    parser.add_argument("demonstrator", choices=names)
    parser.add_argument("options", nargs="*", metavar="KEY=VALUE", help="options of the demonstrator")
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 20), metavar=("FIRST", "END"))
    parser.add_argument("--strip", type=Path, help="PNG of the first episode, eight frames side by side")
    args = parser.parse_args()
    try:
        return check(args.demonstrator, args.options, range(*args.seeds), args.strip)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def check(name: str, options: list[str], seeds: range, strip: Path | None) -> int:
    """Run the episodes and print what was seen."""
    images = [] if strip else ["env.obs_type=state", "env.render_mode=null"]
    argv = [f"env={name}", "out=none", *images, *(f"demonstrator.{option}" for option in options)]
    (job,) = compose(parse(argv, "collect"), "collect")
    refuse(check_targets(job.cfg))
    env = build("env", job.cfg).make_vec(1).envs[0]
    demonstrator: Demonstrator = build("demonstrator", job.cfg)(env)
    steps, seconds, jumps, failed = [], [], [], []
    for seed in tqdm(seeds, unit="episode", disable=None):
        start = time.perf_counter()
        actions, successes, frames = [], [], []
        for action, success in episode(env, demonstrator, seed):
            actions.append(action)
            successes.append(success)
            if strip and seed == seeds[0]:
                frames.append(env.unwrapped.render())
        seconds.append(time.perf_counter() - start)
        steps.append(len(actions))
        jumps.append(np.abs(np.diff(actions, axis=0)).max(axis=0, initial=0.0))
        failed += [] if successes[-1] else [seed]
        if strip and frames:
            draw(frames, strip)
    rate, low, high = wilson(len(seeds) - len(failed), len(seeds))
    print(f"success    {rate:.1%} of {len(seeds)} episodes, 95 % interval {low:.1%} to {high:.1%}")
    print(f"failed     {', '.join(map(str, failed)) or 'none'}")
    print(f"steps      median {np.median(steps):.0f}, largest {max(steps)}")
    print(f"seconds    mean {np.mean(seconds):.2f}, largest {max(seconds):.2f}")
    print(f"largest change of an action: {np.array2string(np.max(jumps, axis=0), precision=3, max_line_width=100)}")
    return 0 if rate >= 0.95 else 1


def episode(env: gym.Env, demonstrator: Demonstrator, seed: int) -> Iterator[tuple[np.ndarray, bool]]:
    """One episode's actions, each with whether it led to success."""
    env.reset(seed=seed)
    demonstrator.reset(np.random.default_rng(seed))
    done = False
    while not done:
        action = demonstrator.act()
        _, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        yield action, info["success"]


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float, float]:
    """A rate with the bounds of its interval."""
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return rate, max(0.0, centre - half), min(1.0, centre + half)


def draw(frames: list[np.ndarray], file: Path, count: int = 8, height: int = 144) -> None:
    """Frames of an episode side by side, the last one included."""
    chosen = [Image.fromarray(frames[i]) for i in np.linspace(0, len(frames) - 1, count).astype(int)]
    small = [np.asarray(image.resize((image.width * height // image.height, height))) for image in chosen]
    Image.fromarray(functools.reduce(lambda a, b: np.hstack([a, b]), small)).quantize(64).save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
