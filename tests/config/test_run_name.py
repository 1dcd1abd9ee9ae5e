"""A run's name depends on what was asked for and on nothing else."""

import re
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from robolearn.config.run_name import canonical, run_name

ASKED = ["policy=diffusion", "dataset.root=/data/pusht", "seed=1", "optimizer.lr=1e-4"]


def digest(name: str) -> str:
    return name.rpartition("_")[2]


@pytest.mark.parametrize(
    "same",
    [
        ASKED[::-1],
        [*ASKED[:3], "optimizer.lr=0.0001"],
        [*ASKED[:3], "+optimizer.lr=1e-04"],
        [*ASKED, "resume=must"],
        ["seed=2", *ASKED],
    ],
    ids=["order", "another spelling", "plus", "how it is started", "given twice, the last counts"],
)
def test_the_same_run(same: list[str]) -> None:
    assert run_name(same) == run_name(ASKED)


@pytest.mark.parametrize(
    "other",
    [[*ASKED, "seed=2"], ASKED[:3], [*ASKED, "batch_size=8"], [*ASKED[:3], "~optimizer.lr"], [*ASKED, "job_name='1'"]],
)
def test_another_run(other: list[str]) -> None:
    assert digest(run_name(other)) != digest(run_name(ASKED))


def test_keys_that_all_runs_share_are_left_out_of_the_readable_part_only() -> None:
    name = run_name(ASKED, hidden=["policy", "dataset.root"])
    assert name.startswith("optimizer.lr-0.0001_seed-1_")
    assert digest(name) == digest(run_name(ASKED))
    assert run_name(ASKED, hidden=canonical(ASKED)) == digest(name)


def test_a_run_that_is_there_keeps_its_name(tmp_path: Path) -> None:
    first = run_name(ASKED, hidden=["optimizer.lr", "policy", "dataset.root"], sweep=str(tmp_path))
    (tmp_path / first).mkdir()
    assert run_name(ASKED, hidden=["policy"], sweep=str(tmp_path)) == first
    assert run_name([*ASKED, "seed=2"], sweep=str(tmp_path)) != first


@pytest.mark.parametrize(
    "value", ["a/b", "[1,2]", "{a:1}", "'x y'", "null", "a@b", "${seed}", "'=,;$(rm)'", "[" + "1," * 200 + "1]"]
)
def test_names_need_no_quoting(value: str) -> None:
    name = run_name([f"policy.x={value}"])
    assert re.fullmatch(r"[\w.+-]{8,100}", name)
    text = f"checkpoint=multirun/{name}/checkpoints/last"
    assert OverridesParser.create().parse_override(text).value() == text.partition("=")[2]
