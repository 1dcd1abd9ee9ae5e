"""A sweep as one self-contained HTML file: parallel coordinates, curves and a sortable table."""

from typing import Any

from robolearn.sweeps.report import LOSS, Sweep, curve
from robolearn.system.templates import render

MAX_CURVES = 200
"""Curves are drawn of so many of the best runs; more would be unreadable and megabytes."""


def page(sweep: Sweep) -> str:
    """The HTML of the page."""
    return render("robolearn.sweeps", "page.html", data=_data(sweep))


def _data(sweep: Sweep) -> dict[str, Any]:
    sign = 1 if sweep.minimize else -1
    ranked = sorted((run for run in sweep.runs if run.best is not None), key=lambda run: sign * (run.best or 0.0))
    drawn = {run.name for run in ranked[:MAX_CURVES]}
    runs = []
    for run in sweep.runs:
        folder = run.folder if run.name in drawn else None
        runs.append(
            {
                "name": run.name,
                "values": [run.overrides.get(key, "") for key in sweep.keys],
                **{name: getattr(run, name) for name in ("state", "step", "steps", "last", "best", "error")},
                "metric": curve(folder, sweep.metric) if folder else [],
                "loss": curve(folder, LOSS) if folder and sweep.metric != LOSS else [],
            }
        )
    return {
        "title": str(sweep.folder),
        "metric": sweep.metric,
        "minimize": sweep.minimize,
        "keys": sweep.keys,
        "counts": sweep.counts(),
        "runs": runs,
        "groups": [vars(group) for group in sweep.groups()],
    }
