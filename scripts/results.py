"""Writes docs/results.md, and the figures of README.md and docs/speed.md, from the runs recorded in docs/results/.

    python scripts/results.py [--check]

Every ``docs/results/*.json`` is a run that `record_result.py` recorded; ``docs/results/goals.yaml`` holds what others
published and what is aimed at. Templates lie beside them. In a page, what stands between ``<!-- results: NAME -->`` and
``<!-- end of results -->`` is replaced by the template NAME. With ``--check`` nothing is written, and the exit status
is 1 where a page differs.
"""

import argparse
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import jinja2
import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from robolearn.rollouts.evaluation import wilson_interval

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("docs/results")
PAGE = Path("docs/results.md")
PAGES_WITH_REGIONS = (Path("README.md"), Path("docs/speed.md"))
BEGIN, END = "<!-- results: {} -->\n", "<!-- end of results -->"

Share = Annotated[float, Field(ge=0, le=1)]


class Strict(BaseModel):
    """Refuses keys it does not know, and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Episodes(Strict):
    """What came of every episode, by its number.

    Attributes:
        first_seed: Seed of the first; each has the next.
        successes: A 1 for each that succeeded, a 0 for each other.
        max_rewards: The largest reward of each, rounded to four digits.
    """

    first_seed: int
    successes: Annotated[str, Field(pattern="^[01]+$")]
    max_rewards: list[float]


class Result(Strict):
    """One run, evaluated once.

    Attributes:
        row: The row of ``goals.yaml`` that it belongs to.
        recipe: The experiment of ``conf/experiment/``.
        command: The whole command, without the paths of the machine.
        overrides: What distinguishes it from the recipe, but for the seed.
        evaluated_with: What the evaluation changed of the policy.
        commit: Of this repository.
        gpu, cuda, python, packages: What it ran on and with.
        steps, batch_size: Updates, and samples of each.
        minutes: From the command to the evaluated policy; null where the evaluation came later.
        samples_per_s: The median over the intervals of logging.
        alone: Whether nothing else ran on the machine, without which time and rate mean little.
        conditions: What else is to be known about them.
    """

    row: str
    recipe: str
    command: str
    overrides: list[str]
    evaluated_with: list[str]
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    gpu: str
    cuda: str | None
    python: str
    packages: dict[str, str]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    seed: int
    steps: int
    batch_size: int
    minutes: float | None
    samples_per_s: float
    alone: bool
    conditions: str
    success_rate: Share
    success_low: Share
    success_high: Share
    avg_max_reward: float
    episodes: Episodes

    @model_validator(mode="after")
    def _figures_are_those_of_the_episodes(self) -> "Result":
        date.fromisoformat(self.date)
        successes, rewards = [int(text) for text in self.episodes.successes], self.episodes.max_rewards
        if len(rewards) != len(successes):
            raise ValueError(f"{len(rewards)} rewards of {len(successes)} episodes")
        interval = wilson_interval(sum(successes), len(successes))
        expected = np.array([np.mean(successes), *interval, np.mean(rewards)])
        found = np.array([self.success_rate, self.success_low, self.success_high, self.avg_max_reward])
        if not np.allclose(found, expected, atol=1e-4):
            raise ValueError(
                f"success, its interval and the average reward are {expected} by the episodes, not {found}"
            )
        return self

    @property
    def variant(self) -> str:
        """What distinguishes it from its recipe, in words of the command line; empty where nothing does."""
        evaluated = ["evaluated with", *self.evaluated_with] if self.evaluated_with else []
        return " ".join([*self.overrides, *evaluated])


class Published(Strict):
    """What others report."""

    text: str
    success: Share | None = None
    max_reward: float | None = None
    source: str


class Row(Strict):
    """A task and a policy: what is published, what is aimed at, and what was found before runs were recorded.

    Attributes:
        goal: In words.
        minutes: What the whole command may take.
        note: What is to be known to compare the figures.
        unrecorded: Earlier figures without a record of their episodes.
    """

    key: str
    what: str
    published: Published | None = None
    goal: str
    minutes: float | None = None
    note: str = ""
    unrecorded: list[str] = []


class Pool:
    """Runs that differ in their seed alone."""

    def __init__(self, results: list[Result]) -> None:
        self.results = sorted(results, key=lambda result: result.seed)
        first = self.first = self.results[0]
        self.recipe, self.variant, self.gpu = first.recipe, first.variant, first.gpu
        self.samples = first.steps * first.batch_size
        outcomes = [int(text) for result in results for text in result.episodes.successes]
        self.count = len(outcomes)
        self.success = float(np.mean([result.success_rate for result in results]))
        self.low, self.high = wilson_interval(sum(outcomes), len(outcomes))
        self.max_reward = float(np.mean([result.avg_max_reward for result in results]))
        self.timed = [result for result in self.results if result.alone and result.minutes is not None]

    def rank(self) -> tuple[int, float]:
        """Most episodes first, then the highest success."""
        return self.count, self.success


def load(folder: Path) -> tuple[list[Row], dict[str, list[Pool]]]:
    """The rows, and the pools of each, the one that speaks for the row first."""
    rows = TypeAdapter(list[Row]).validate_python(yaml.safe_load((folder / "goals.yaml").read_text()))
    grouped: dict[str, dict[Any, list[Result]]] = {row.key: defaultdict(list) for row in rows}
    for file in sorted(folder.glob("*.json")):
        result = Result.model_validate_json(file.read_text())
        if result.row not in grouped:
            raise ValueError(f"{file.name}: goals.yaml has no row {result.row}")
        key = (result.recipe, result.variant, result.gpu)
        if any(other.seed == result.seed for other in grouped[result.row][key]):
            raise ValueError(f"{file.name}: there is another run of the same seed")
        grouped[result.row][key].append(result)
    pools = {key: sorted(map(Pool, found.values()), key=Pool.rank, reverse=True) for key, found in grouped.items()}
    return rows, pools


def pages(root: Path) -> dict[Path, str]:
    """What every page should say."""
    rows, pools = load(root / FOLDER)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(root / FOLDER),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.1f} %",
        "interval": lambda pool: f"{100 * pool.low:.1f} to {100 * pool.high:.1f} %",
        "count": lambda number: f"{number:,.0f}",
        "decimals": lambda number, digits: f"{number:.{digits}f}",
        "code": lambda text: f"`{text}`" if text else "as it stands",
    }

    def rendered(name: str) -> str:
        return environment.get_template(f"{name}.md.j2").render(rows=rows, pools=pools)

    found = {root / PAGE: rendered("results")}
    for page in PAGES_WITH_REGIONS:
        found[root / page] = with_regions((root / page).read_text(), rendered)
    return found


def with_regions(text: str, rendered: Any) -> str:
    """A page with its marked regions filled in anew."""
    before, *parts = text.split(BEGIN.split("{}")[0])
    result = before
    for part in parts:
        name = part.split(" -->", 1)[0]
        _, end, after = part.partition(END)
        if not end:
            raise ValueError(f"the region {name} does not end")
        result += f"{BEGIN.format(name)}{rendered(name).strip()}\n{END}{after}"
    return result


def main() -> None:
    """Write the pages, or look whether they are up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where a page differs")
    parser.add_argument("--root", type=Path, default=ROOT, help="of the repository")
    arguments = parser.parse_args()
    differing = {page: text for page, text in pages(arguments.root).items() if _read(page) != text}
    for page, text in differing.items():
        print(f"{page.relative_to(arguments.root)} {'is not what the records say' if arguments.check else 'written'}")
        if not arguments.check:
            page.write_text(text)
    sys.exit(arguments.check and bool(differing))


def _read(page: Path) -> str | None:
    return page.read_text() if page.exists() else None


if __name__ == "__main__":
    main()
