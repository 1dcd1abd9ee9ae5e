"""Runs of a sweep whose jobs ended before the run started: what the launcher records about them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robolearn.system.files import write_json

FOLDER = ".not_begun"


def record(sweep: Path, run: Path, overrides: Sequence[str], error: str, log: Path) -> None:
    """Record what ended a run's job.

    Args:
        sweep: The sweep's folder.
        run: The folder that the run would have had.
        overrides: As Hydra gave them to it.
        error: In one line.
        log: The file that its job wrote to.
    """
    file = _file(sweep, run)
    file.parent.mkdir(exist_ok=True)
    write_json(file, {"folder": str(run), "overrides": list(overrides), "error": error, "log": str(log)})


def forget(sweep: Path, run: Path) -> None:
    """Drop the record of a run, for which a new job was submitted."""
    _file(sweep, run).unlink(missing_ok=True)


def read(sweep: Path) -> Iterator[dict[str, Any]]:
    """The records of a sweep's runs."""
    for file in sorted(sweep.glob(f"{FOLDER}/*.json")):
        yield json.loads(file.read_text())


def _file(sweep: Path, run: Path) -> Path:
    return sweep / FOLDER / f"{run.name}.json"
