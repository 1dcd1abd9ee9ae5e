"""The small files of a run's folder as others read them: what is damaged is named, and ends nobody who reads it."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from robolearn.system.json_files import DamagedFileError, is_number, parse_json, read_json, reason

log = logging.getLogger(__name__)

CONFIG, RECORD, STATUS, METRICS = "config.yaml", "run.json", "status.json", "metrics.jsonl"
STATES = ("running", "interrupted", "finished", "failed")


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run: two of its files, since one may be lost, and a checkpoint has one of them, too."""
    return sum((folder / name).exists() for name in (CONFIG, RECORD, STATUS)) >= 2


def status(folder: Path) -> dict[str, Any] | None:
    """The content of a run's ``status.json``; None where there is none yet, or with a warning where it is damaged."""
    file = folder / STATUS
    try:
        found = read_json(file)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        log.warning("%s; the run's state is not known until it is resumed.", error)
        return None
    numbers = [found.get("step"), *(found[key] for key in ("time", "since", "first_step") if key in found)]
    if found.get("state") not in STATES or not all(map(is_number, numbers)):
        log.warning("%s is damaged (it has no state or step); the run's state is not known until it is resumed.", file)
        return None
    return found | {"steps": found.get("steps") if is_number(found.get("steps")) else None}


def is_finished(folder: Path, steps: int) -> bool:
    """Whether the run of a folder came to its last step."""
    found = status(folder)
    return bool(found and found["state"] == "finished" and found["step"] >= steps)


def read_config(file: Path) -> dict[str, Any]:
    """The mapping in a file of YAML.

    Raises:
        FileNotFoundError: There is none.
        DamagedFileError: It can't be read, or holds something else.
    """
    try:
        # Not by LibYAML, which is faster, but ends the process where a file is nested too deeply.
        content = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise DamagedFileError(f"{file} is damaged ({reason(error)})") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{file} is damaged (it holds no mapping)")
    return content


def numbered_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their step; whatever else lies there is none."""
    found = [path for path in folder.glob("[0-9]*") if re.fullmatch(r"[0-9]{1,18}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name))


def recorded_configs(folder: Path) -> Iterator[dict[str, Any]]:
    """What a run says of its configuration, wherever it can be read: its own file, then its checkpoints, newest first.

    All say the same but for what a resumed run may change.
    """
    copies = [checkpoint / CONFIG for checkpoint in reversed(numbered_checkpoints(folder / "checkpoints"))]
    for file in (folder / CONFIG, *copies):
        with suppress(FileNotFoundError, DamagedFileError):
            yield read_config(file)


def overrides(folder: Path) -> list[str]:
    """What the run's user gave; empty where it is not known."""
    try:
        found = read_json(folder / RECORD).get("overrides")
    except FileNotFoundError:
        return []
    except DamagedFileError as error:
        log.warning("%s; what the run was given is not known.", error)
        return []
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def metric_lines(lines: Iterable[bytes], file: Path) -> list[dict[str, Any]]:
    """Steps of a run's ``metrics.jsonl``, with numbers and nulls alone; a warning counts lines that are damaged.

    Args:
        lines: Of the file.
        file: For the warning.
    """
    parsed = [_metric_line(line) for line in lines]
    if damaged := sum(line is None for line in parsed):
        log.warning("%s is damaged: %d of its lines can't be read and are left out.", file, damaged)
    return [line for line in parsed if line is not None]


def read_metrics(folder: Path) -> list[bytes]:
    """The lines of a run's ``metrics.jsonl``, unparsed; none, and a warning, where it can't be read.

    Without the last one where it is being written, or was cut off by a kill.
    """
    file = folder / METRICS
    try:
        *lines, rest = file.read_bytes().split(b"\n")
        cut_off = rest.startswith(b"{") and not _metric_line(rest)
        return [line for line in (*lines, b"" if cut_off else rest) if line]
    except FileNotFoundError:
        return []
    except OSError as error:
        log.warning("%s can't be read (%s); its steps are left out.", file, reason(error))
        return []


def last_metric(folder: Path, metric: str) -> float | None:
    """The last value of an evaluation scalar in a run's ``metrics.jsonl``."""
    value = None
    for line in metric_lines(read_metrics(folder), folder / METRICS):
        value = line.get(f"eval/{metric}", value)
    return value


def _metric_line(line: bytes) -> dict[str, Any] | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None
    if not isinstance(found, Mapping) or not is_number(found.get("step")):
        return None
    return {name: value for name, value in found.items() if value is None or is_number(value)}
