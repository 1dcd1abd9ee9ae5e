"""How long it takes from the command to an evaluated policy, and how good that is over several seeds.

    python benchmarks/time_to_result.py dataset.root=DIR [experiment=NAME] [seeds=0,1,2] [out=DIR] [...]

Every key of `robolearn-train` may be given. Each seed is a run of its own, one after the other, start-up, compilation
and evaluation included; a run that is there already under ``out`` is not repeated. Prints a table and, as its last
line, the figures as JSON: means over seeds with their 95 % interval (Student's t), and the Wilson interval of all
episodes together.
"""

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from robolearn.rollouts.evaluation import wilson_interval

OWN = {"experiment": "diffusion_pusht_reflected", "seeds": "0,1,2", "out": "outputs/time_to_result"}
"""The benchmark's own keys."""


def main() -> None:
    """Train and evaluate with every seed."""
    own, overrides = dict(OWN), []
    for argument in sys.argv[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(argument)
    print(f"{'seed':>5} {'seconds':>8} {'success':>8} {'max reward':>11} {'episodes':>9}")
    rows = []
    for seed in map(int, own["seeds"].split(",")):
        row = result(own["experiment"], seed, Path(own["out"]) / f"{own['experiment']}_{seed}", overrides)
        rows.append(row)
        print(
            f"{seed:>5} {row['seconds']:>8.0f} {row['success_rate']:>8.1%} {row['avg_max_reward']:>11.3f} "
            f"{row['episodes']:>9}",
            flush=True,
        )
    together: dict[str, Any] = {name: interval([row[name] for row in rows]) for name in rows[0] if name in MEANS}
    episodes = sum(row["episodes"] for row in rows)
    together["success_wilson"] = wilson_interval(round(sum(r["success_rate"] * r["episodes"] for r in rows)), episodes)
    print(json.dumps({**together, "episodes": episodes, "rows": rows}))


MEANS = ("seconds", "success_rate", "avg_max_reward")


def result(experiment: str, seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """What a run came to; its seconds are written beside it."""
    file = folder.with_name(f"{folder.name}.json")
    if not file.exists():
        command = [f"+experiment={experiment}", f"seed={seed}", f"output_dir={folder}", "resume=never", *overrides]
        started = time.perf_counter()
        code = "from robolearn.cli.train import main; main()"
        subprocess.run([sys.executable, "-c", code, *command], check=True)
        seconds = time.perf_counter() - started
        evaluation = json.loads(max((folder / "eval").glob("*/eval.json")).read_text())
        scalars = {name: evaluation[name] for name in ("success_rate", "avg_max_reward")}
        row = {"seed": seed, "seconds": round(seconds, 1), **scalars, "episodes": len(evaluation["episodes"])}
        file.write_text(json.dumps(row))
    return json.loads(file.read_text())


def interval(values: list[float]) -> dict[str, float | None]:
    """The mean and its 95 % interval; of one value there is none."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None}
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    main()
