"""The benchmark of pi0 runs, at a size that says nothing about speed."""

import json
import runpy
import sys

import pytest
from fakes.cli import ROOT


def test_pi0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    keys = "size=tiny device=cpu batch_size=1 compile=false repeats=1 variants=all+checkpointing,expert"
    monkeypatch.setattr(sys, "argv", ["pi0.py", *keys.split()])
    runpy.run_path(str(ROOT / "benchmarks/pi0.py"), run_name="__main__")
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    for part in ("train all+checkpointing", "train expert", "act"):
        assert figures[part]["ms"] > figures[part]["floor_ms"] > 0
