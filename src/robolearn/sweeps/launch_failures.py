"""Runs of a sweep whose jobs ended before they could write anything: what their launcher notes of them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robolearn.system.files import write_json

FOLDER = ".not_begun"


def record(sweep: Path, run: Path, overrides: Sequence[str], error: str, log: Path) -> None:
    """Note what ended a run's job.

    Args:
        sweep: The sweep's folder.
        run: The folder that the run would have had.
        overrides: As Hydra gave them to it.
        error: In one line.
        log: Where its job wrote.
    """
    file = _file(sweep, run)
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"folder": str(run), "overrides": list(overrides), "error": error, "log": str(log)})


def forget(sweep: Path, run: Path) -> None:
    """A new job was submitted for the run."""
    _file(sweep, run).unlink(missing_ok=True)


def read(sweep: Path) -> Iterator[dict[str, Any]]:
    """What is noted of a sweep's runs."""
    for file in sorted(sweep.glob(f"{FOLDER}/*.json")):
        yield json.loads(file.read_text())


def _file(sweep: Path, run: Path) -> Path:
    return sweep / FOLDER / f"{run.name}.json"
