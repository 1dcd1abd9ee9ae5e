"""``robolearn-sweep``: how the runs of a sweep stand and what came of them."""

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robolearn.cli.entry import Parser, entry_point
from robolearn.errors import UserError, did_you_mean
from robolearn.sweeps.report import Group, Sweep, SweepRun, read

DESCRIPTION = """\
robolearn-sweep shows how the runs of a sweep stand, live or finished.

Usage:
  robolearn-sweep DIR [OPTION]

DIR is the sweep's folder: multirun/<date>/<time>, or what hydra.sweep.dir= said.

Options:
  --metric NAME    what runs are compared by: success_rate, avg_max_reward, train/loss, ...
                   (default: the checkpoints' metric, or the loss where nothing was evaluated)
  --minimize       small is good
  --csv FILE       one line a run; - prints it instead of the tables
  --json FILE      runs and groups; - prints it instead of the tables
  --html FILE      a page of its own with parallel coordinates and curves
  -h, --help       this text
"""

NOTHING = "-"


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """The entry point."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    if arguments.help:
        print(DESCRIPTION, end="")
        return
    sweep = read(arguments.folder, arguments.metric, arguments.minimize)
    print(report(sweep, arguments), end="")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line.

    Raises:
        UserError: It is not understood.
    """
    parser = Parser("robolearn-sweep", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--metric")
    parser.add_argument("--minimize", action="store_true")
    for name in ("--csv", "--json", "--html"):
        parser.add_argument(name, metavar="FILE")

    arguments, unknown = parser.parse_known_args(list(argv))
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(
            f"{unknown[0]}: there is no such option{did_you_mean(unknown[0], flags)}; see --help.", key=unknown[0]
        )
    if arguments.folder is None and not arguments.help:
        raise UserError("Which sweep? Write robolearn-sweep multirun/<date>/<time>; see --help.")
    return arguments


def report(sweep: Sweep, arguments: argparse.Namespace) -> str:
    """What is printed; files that were asked for are written."""
    printed = []
    for path, make in ((arguments.csv, as_csv), (arguments.json, as_json)):
        if path == "-":
            printed.append(make(sweep))
        elif path:
            _write(Path(path), make(sweep))
    if arguments.html:
        from robolearn.sweeps.page import page

        _write(Path(arguments.html), page(sweep))
    if printed:
        return "".join(printed)
    files = [path for path in (arguments.csv, arguments.json, arguments.html) if path]
    return tables(sweep) + "".join(f"Written: {path}\n" for path in files)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).", key=str(path)) from error


def tables(sweep: Sweep) -> str:
    """Runs, groups over seeds, and what went wrong, as text."""
    counts = ", ".join(f"{number} {state}" for state, number in sweep.counts().items())
    parts = [f"{sweep.folder}: {len(sweep.runs)} runs, {counts}; by {sweep.metric}\n"]
    heads = [*map(_short(sweep.keys), sweep.keys), "state", "step", "ETA", "last", "best"]
    parts.append(_table(heads, [_row(run, sweep.keys) for run in sweep.runs]))
    groups = sweep.groups()
    if len(groups) < len(sweep.runs):
        keys = list(groups[0].overrides)
        rows = [_group_row(group) for group in groups]
        parts.append(_table([*map(_short(keys), keys), "seeds", "mean", "95 % interval", "lowest", "highest"], rows))
    bad = [run for run in sweep.runs if run.error]
    parts += ["".join(f"{run.state}: {run.name}: {run.error}\n  {run.log or run.folder}\n" for run in bad)] * bool(bad)
    return "\n".join(parts)


def _short(keys: Sequence[str]) -> Any:
    """The last part of a key, where no other key ends with it."""
    ends = [key.rpartition(".")[2] for key in keys]
    return lambda key: key if ends.count(key.rpartition(".")[2]) > 1 else key.rpartition(".")[2]


def _row(run: SweepRun, keys: Sequence[str]) -> list[str]:
    step = NOTHING if run.step is None else f"{run.step}/{run.steps}" if run.steps else str(run.step)
    values = [_brief(run.overrides.get(key, NOTHING)) for key in keys]
    return [*values, run.state, step, duration(run.eta_s), _number(run.last), _number(run.best)]


def _group_row(group: Group) -> list[str]:
    span = NOTHING if group.low is None else f"{_number(group.low)} to {_number(group.high)}"
    ends = (min(group.values), max(group.values)) if group.values else (None, None)
    figures = [str(len(group.values)), _number(group.mean), span, *map(_number, ends)]
    return [*map(_brief, group.overrides.values()), *figures]


def duration(seconds: float | None) -> str:
    """Like ``3 h 20 min``, in the two largest units."""
    if seconds is None:
        return NOTHING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (number, _) in enumerate(parts) if number), 3)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2])


def _brief(value: str) -> str:
    """Without the digits that a sampler's draws have."""
    return f"{float(value):.4g}" if re.fullmatch(r"-?\d*\.\d+(e-?\d+)?", value) else value


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    columns = list(zip(heads, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    lines = ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)) for row in [heads, *rows]]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def as_csv(sweep: Sweep) -> str:
    """One line a run, with every key that any of them was given."""
    keys = list(dict.fromkeys(key for run in sweep.runs for key in run.overrides))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", *keys, "state", "step", "steps", "eta_s", "last", "best", "error", "folder"])
    for run in sweep.runs:
        figures = [run.state, run.step, run.steps, run.eta_s, run.last, run.best, run.error, run.folder]
        writer.writerow([run.name, *(run.overrides.get(key) for key in keys), *figures])
    return stream.getvalue()


def as_json(sweep: Sweep) -> str:
    """Runs and groups."""
    runs = [{"name": run.name, **vars(run)} for run in sweep.runs]
    content = {
        "folder": sweep.folder,
        "metric": sweep.metric,
        "minimize": sweep.minimize,
        "counts": sweep.counts(),
        "keys": sweep.keys,
        "runs": runs,
        "groups": [vars(group) for group in sweep.groups()],
    }
    return json.dumps(content, indent=2, default=str) + "\n"


if __name__ == "__main__":
    main()
