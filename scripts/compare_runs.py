"""Say by how much one run's policy beats another's on the same episodes.

    scripts/compare_runs.py BASELINE_RUN RUN

Reads the last evaluation of each; they have to have run the same seeds. The interval of the difference in reward is
that of a paired t-test over episodes.
"""

import json
import sys
from pathlib import Path

import numpy as np


def last_evaluation(run: Path) -> dict:
    files = sorted(run.glob("eval/*/eval.json"))
    if not files:
        sys.exit(f"{run} holds no evaluation.")
    return json.loads(files[-1].read_text())


def line(name: str, found: dict) -> str:
    rewards = np.array([episode["max_reward"] for episode in found["episodes"]])
    success = f"{found['success_rate']:.0%} (95 % interval {found['success_low']:.0%} to {found['success_high']:.0%})"
    return f"  {name:<10} success {success}, best reward of an episode {rewards.mean():.2f} on average"


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    paths = [Path(text) for text in sys.argv[1:]]
    before, after = (last_evaluation(path) for path in paths)
    seeds = [[episode["seed"] for episode in found["episodes"]] for found in (before, after)]
    if seeds[0] != seeds[1]:
        sys.exit("The two runs were evaluated on other episodes, so they can't be compared.")
    print(f"\n{len(seeds[0])} episodes that start alike:")
    print(line(paths[0].name, before))
    print(line(paths[1].name, after))
    rewards = [np.array([episode["max_reward"] for episode in found["episodes"]]) for found in (before, after)]
    gain = rewards[1] - rewards[0]
    half = 1.96 * gain.std(ddof=1) / np.sqrt(len(gain))
    better, worse = int((gain > 0).sum()), int((gain < 0).sum())
    print(
        f"Training raised success by {100 * (after['success_rate'] - before['success_rate']):.0f} points and the best "
        f"reward by {gain.mean():.2f} (95 % interval {gain.mean() - half:.2f} to {gain.mean() + half:.2f}); "
        f"it did better in {better} and worse in {worse} episodes."
    )


if __name__ == "__main__":
    main()
