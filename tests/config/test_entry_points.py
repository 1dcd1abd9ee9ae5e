"""The console scripts as processes: fast answers, completion, status and streams."""

import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import processes

SLOW_IMPORTS = ("torch", "diffusers", "transformers", "datasets", "gymnasium", "av")
PROBE = """
import atexit, sys
atexit.register(lambda: print("SLOW", [m for m in {names} if m in sys.modules], file=sys.stderr))
from robolearn.cli.{module} import main
sys.argv[0] = "robolearn-{module}"
main()
"""


def run(*argv: str, module: str = "train", **environment: str) -> subprocess.CompletedProcess[str]:
    """The entry point in a process of its own."""
    code = PROBE.format(names=SLOW_IMPORTS, module=module)
    env = {**os.environ, **environment}
    return processes.run([sys.executable, "-c", code, *argv], env=env)


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--cfg", "job"], ["--cfg", "job", "--resolve", "-p", "policy"], ["--cfg", "hydra"], ["--hydra-help"]]
    + [["--info", "defaults"], ["-sc", "install=bash"], ["sed=3"], ["--cfg", "job", "+experiment=diffusion_pusht"]],
    ids=" ".join,
)
def test_answers_without_torch(argv: list[str]) -> None:
    done = run(*argv)
    assert done.returncode == (2 if argv == ["sed=3"] else 0), done.stderr
    assert "SLOW []" in done.stderr
    assert list(Path.cwd().iterdir()) == []


def test_help_lists_groups_options_and_examples() -> None:
    text = run("--help").stdout
    assert "diffusion*" in text
    assert "how weights are updated" in text
    assert "+experiment=diffusion_pusht_fast" in text
    assert run("--help", module="evaluate").stdout.startswith("robolearn-eval evaluates a checkpoint")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("policy=", "policy=diffusion"), ("optimizer=ad", "optimizer=adamw"), ("batch_s", "batch_size=")]
    + [("policy.horiz", "policy.horizon="), ("+experiment=diff", "+experiment=diffusion_pusht")],
)
def test_completion(typed: str, offered: str) -> None:
    line = f"robolearn-train {typed}"
    done = run("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert offered in done.stdout.split()
    assert "SLOW []" in done.stderr


def test_resolved_configuration_names_the_run() -> None:
    assert "job_name: pusht_diffusion" in run("--cfg", "job", "--resolve").stdout


def test_options_may_stand_among_overrides() -> None:
    done = run("seed=3", "--cfg", "job", "batch_size=7")
    assert "seed: 3\n" in done.stdout
    assert "batch_size: 7\n" in done.stdout


@pytest.mark.parametrize("module", ["train", "evaluate", "collect", "sweep", "dataset"])
def test_ctrl_c_leaves_without_a_traceback(module: str, capsys, monkeypatch) -> None:
    command = importlib.import_module(f"robolearn.cli.{module}")
    monkeypatch.setattr(command, "_parser" if module == "dataset" else "parse", interrupt)
    with pytest.raises(SystemExit) as caught:
        command.main([])
    assert caught.value.code == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def interrupt(*args: object) -> None:
    signal.raise_signal(signal.SIGINT)
