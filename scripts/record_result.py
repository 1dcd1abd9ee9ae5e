"""Records a finished run in docs/results/, with every episode of its evaluation.

    python scripts/record_result.py RUN row=ROW [alone=false] [conditions=TEXT] [evaluation=FOLDER changed=KEY=VALUE]

RUN is a run's folder as `benchmarks/time_to_result.py` leaves it, with the seconds of the whole command in a file
beside it. ROW is one of ``docs/results/goals.yaml``. ``evaluation`` is the folder of a `robolearn-eval` of the run's
last checkpoint, which counts in place of its own; ``changed`` says what it changed. Then `scripts/results.py` writes
the pages.
"""

import json
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import yaml
from omegaconf import OmegaConf
from results import FOLDER, ROOT, Episodes, Result

from robolearn.config.compose import compose, parse

OF_THE_MACHINE = ("seed=", "output_dir=", "resume=", "dataset.root=", "logger=", "+experiment=")
"""Overrides that say nothing about what was learned, or have a field of their own."""


def main() -> None:
    """Record one run."""
    run, options = Path(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:])
    result = record(run, **options)
    print(write(result, ROOT / FOLDER))


def record(
    run: Path, row: str, alone: str = "true", conditions: str = "", evaluation: str | None = None, changed: str = ""
) -> Result:
    """What a run came to.

    Args:
        run: Its folder.
        row: The row of ``goals.yaml``.
        alone: Whether nothing else ran on the machine: true or false.
        conditions: What else is to be known about its time.
        evaluation: A folder with another ``eval.json`` of its last checkpoint.
        changed: What that evaluation changed, separated by commas.
    """
    about, config = json.loads((run / "run.json").read_text()), yaml.safe_load((run / "config.yaml").read_text())
    folder = Path(evaluation) if evaluation else max((run / "eval").iterdir())
    evaluated = json.loads((folder / "eval.json").read_text())
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [each["train/samples_per_s"] for each in logged if "train/samples_per_s" in each]
    episodes = evaluated["episodes"]
    recipe = next(text for text in about["overrides"] if text.startswith("+experiment=")).partition("=")[2]
    return Result(
        row=row,
        recipe=recipe,
        command=" ".join(["robolearn-train", *filter(None, map(_portable, about["overrides"]))]),
        overrides=_differing(recipe, about["overrides"]),
        evaluated_with=[text for text in changed.split(",") if text],
        commit=about["git_sha"],
        gpu=about["device"]["name"],
        cuda=about["device"]["cuda"],
        python=about["python"],
        packages=about["packages"],
        date=datetime.fromtimestamp(about["time"], UTC).date().isoformat(),
        seed=config["seed"],
        steps=config["offline"]["steps"] + config["online"]["steps"],
        batch_size=config["batch_size"],
        minutes=None if evaluation else _minutes(run),
        samples_per_s=round(float(np.median(rates)), 1),
        alone=alone == "true",
        conditions=conditions,
        success_rate=evaluated["success_rate"],
        success_low=round(evaluated["success_low"], 6),
        success_high=round(evaluated["success_high"], 6),
        avg_max_reward=round(evaluated["avg_max_reward"], 6),
        episodes=Episodes(
            first_seed=episodes[0]["seed"],
            successes="".join(str(int(each["success"])) for each in episodes),
            max_rewards=[round(each["max_reward"], 4) for each in episodes],
        ),
    )


def write(result: Result, folder: Path) -> Path:
    """Write a record to a file named by what it is of."""
    parts = [result.recipe, re.sub(r"[^\w.]+", "-", result.variant), f"seed{result.seed}"]
    file = folder / f"{'_'.join(filter(None, parts))}.json"
    text = json.dumps(result.model_dump(), indent=1)
    # A number a line would make a record of 500 episodes 500 lines long.
    file.write_text(re.sub(r"\[\s+(-?\d[^\]]*?)\s+\]", lambda found: f"[{_one_line(found[1])}]", text) + "\n")
    return file


def _differing(recipe: str, overrides: list[str]) -> list[str]:
    """The overrides that make a run another one than its recipe alone, whatever seed, folders and loggers it has."""
    (job,) = compose(parse([f"+experiment={recipe}"], "train"), "train")

    def differs(override: str) -> bool:
        key, _, value = override.partition("=")
        return OmegaConf.select(job.cfg, key.lstrip("+")) != yaml.safe_load(value)

    return sorted(text for text in overrides if not text.startswith(OF_THE_MACHINE) and differs(text))


def _one_line(numbers: str) -> str:
    return " ".join(numbers.split())


def _minutes(run: Path) -> float:
    return round(json.loads(run.with_name(f"{run.name}.json").read_text())["seconds"] / 60, 2)


def _portable(override: str) -> str | None:
    """An override without this machine's paths."""
    key, _, value = override.partition("=")
    if key in ("output_dir", "resume"):
        return None
    return f"{key}={Path(value).name}" if key == "dataset.root" else override


if __name__ == "__main__":
    main()
