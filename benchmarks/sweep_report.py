#!/usr/bin/env python
"""How long robolearn-sweep takes to read a sweep of finished runs, made up on the spot.

python benchmarks/sweep_report.py [--runs 1000] [--lines 400] [--keep FOLDER]
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from robolearn.config.run_name import run_name


def main() -> None:
    """Write the runs, read them by the command, and print the seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=400, help="logged steps of a run")
    parser.add_argument("--keep", type=Path, help="write the runs here, and leave them")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        write_sweep(folder, arguments.runs, arguments.lines)
        for options in ([], ["--json", "-"], ["--html", str(folder / "sweep.html")]):
            start = time.perf_counter()
            command = [sys.executable, "-m", "robolearn.cli.sweep", str(folder), *options]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds = time.perf_counter() - start
            print(f"{arguments.runs} runs, {' '.join(options[:1]) or 'table':6}: {seconds:.2f} s")
            assert done.stdout.count("finished") >= arguments.runs or options


def write_sweep(folder: Path, runs: int, lines: int) -> None:
    """Finished runs over rates, horizons and seeds, with all the files that a real one has but its checkpoints."""
    for number in range(runs):
        rate, horizon, seed = 10 ** -(2 + number % 7 / 2), 8 * (1 + number // 7 % 5), number // 35
        overrides = ["policy=diffusion", "env=pusht", f"optimizer.lr={rate:.3g}", f"policy.horizon={horizon}"]
        overrides.append(f"seed={seed}")
        run = folder / run_name(overrides, hidden=["policy", "env"])
        run.mkdir(parents=True)
        quality = math.exp(-((math.log10(rate) + 4) ** 2)) * horizon / 40 * (0.9 + 0.1 * math.sin(7 * seed))
        rows = [row(100 * (i + 1), lines * 100, quality) for i in range(lines)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        record = {"command": ["robolearn-train"], "overrides": overrides, "packages": {"torch": "2.11"}, "time": 0.0}
        (run / "run.json").write_text(json.dumps(record, indent=2))
        (run / "config.yaml").write_text(f"seed: {seed}\ncheckpoints: {{metric: success_rate}}\n" + CONFIG)
        state = {"state": "finished", "step": lines * 100, "steps": lines * 100, "first_step": 0, "error": None}
        (run / "status.json").write_text(json.dumps({**state, "job": None, "since": 0.0, "time": 3600.0}))
        (run / "train.log").write_text("Done.\n")


CONFIG = "".join(f"key_{number}: {{value: {number}, other: [1, 2, 3]}}\n" for number in range(120))


def row(step: int, steps: int, quality: float) -> dict[str, float]:
    """A line of metrics.jsonl."""
    done = step / steps
    line = {"step": step, "time": float(step), "train/loss": math.exp(-3 * done * (0.3 + quality))}
    line |= {"train/grad_norm": 1.0, "train/samples_per_s": 4000.0, "train/lr/policy": 1e-4, "train/data_wait": 0.01}
    if step % (steps // 10) == 0:
        line |= {"eval/success_rate": round(quality * done, 3), "eval/avg_max_reward": quality * done}
    return line


if __name__ == "__main__":
    main()
