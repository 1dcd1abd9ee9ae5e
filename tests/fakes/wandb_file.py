"""What a run on Weights & Biases left in its folder: the records of a .wandb file, which is a log of LevelDB's kind."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER, FULL_OR_LAST = 32768, 7, (1, 4)


def records(path: Path) -> Iterator[Any]:
    """The protocol's records, one after the other."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), HEADER, b""  # the file begins with a header of its own
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + HEADER : place + HEADER + size]
        place += HEADER + size
        if kind in FULL_OR_LAST:
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def runs(folder: Path) -> list[list[Any]]:
    """The records of each time that the run in a folder was started and ended, the oldest first."""
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    for _ in range(1200):  # a process of W&B's own may still be writing when `finish` returns
        found = [list(records(file)) for file in files]
        if all(any(record.WhichOneof("record_type") == "exit" for record in run) for run in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"a run in {folder} was not ended")


def started(run: list[Any]) -> Any:
    """What is known about a run."""
    return next(record.run for record in run if record.WhichOneof("record_type") == "run")


def history(run: list[Any]) -> list[dict[str, Any]]:
    """What was logged."""
    lines = [record.history for record in run if record.WhichOneof("record_type") == "history"]
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in line.item} for line in lines
    ]
