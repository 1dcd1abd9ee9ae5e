"""A robot, demonstrations and a policy of a user's own, by `_target_`: train, resume, evaluate."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from fakes.line_env import FILES, SMALL

from robolearn.cli import evaluate, train
from robolearn.runs.run import last_metric

Own = Callable[[dict[str, str]], list[str]]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Hydra configures logging for the process."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:], logging.root.level = handlers, level


@pytest.fixture
def trained(own: Own) -> list[str]:
    """A run in ``run``; returns the options that add the user's folder."""
    options = own(FILES)
    train.main([*options, *SMALL, "output_dir=run"])
    return options


def fails(main: Callable[[list[str]], None], argv: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The sentence a command line ends with."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    return err


def test_trains_evaluates_and_records(trained: list[str]) -> None:
    run = Path("run")
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["policy"]["_target_"] == "fakes.line_env.Linear"
    assert config["output_dir"] == str(run.absolute())
    assert "policy=linear" in json.loads((run / "run.json").read_text())["overrides"]
    assert (run / "checkpoints" / "last" / "model.safetensors").is_file()
    assert (run / "eval" / "00000004" / "eval.json").is_file()
    assert not (run / ".hydra").exists()


def test_finished_run_says_so_and_returns_its_metric(trained: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    before = Path("run/metrics.jsonl").read_text()
    train.main([*trained, *SMALL, "output_dir=run"])
    assert "is finished at step 4; success_rate was" in capfd.readouterr().out
    assert Path("run/metrics.jsonl").read_text() == before
    assert last_metric(Path("run"), "success_rate") is not None


def test_more_steps_go_on(trained: list[str]) -> None:
    train.main([*trained, *SMALL, "offline.steps=6", "output_dir=run"])
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 6


def test_other_configuration_in_the_folder_is_refused(trained: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    text = fails(train.main, [*trained, *SMALL, "seed=7", "output_dir=run"], capfd)
    assert "seed was 1000, now 7" in text
    text = fails(train.main, [*trained, *SMALL, "resume=never", "output_dir=run"], capfd)
    assert "resume=never" in text


def test_folder_with_other_files_is_refused(own: Own, capfd: pytest.CaptureFixture[str]) -> None:
    Path("full").mkdir()
    Path("full/thesis.tex").write_text("dear")
    assert "thesis.tex" in fails(train.main, [*own(FILES), *SMALL, "output_dir=full"], capfd)
    Path("file").write_text("")
    assert "output_dir=file is a file" in fails(train.main, [*own(FILES), *SMALL, "output_dir=file"], capfd)


def test_sweep(own: Own) -> None:
    train.main(["-m", *own(FILES), *SMALL, "seed=1,2", "hydra.sweep.dir=sweep"])
    for seed in (1, 2):
        (run,) = Path("sweep").glob(f"seed-{seed}_*")
        assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == seed
        assert (run / "status.json").is_file()
    assert not Path("outputs").exists()


def test_a_sweep_that_is_started_again_with_a_larger_grid_keeps_its_runs(own: Own) -> None:
    argv = ["-m", *own(FILES), *SMALL, "hydra.sweep.dir=sweep"]
    train.main([*argv, "seed=1"])
    before = {file: file.stat().st_mtime_ns for file in Path("sweep").glob("*/metrics.jsonl")}
    train.main([*argv, "seed=0,1,2"])
    assert {file: file.stat().st_mtime_ns for file in before} == before
    train.main([*argv, "optimizer.lr=0.1,0.2", "seed=1"])
    configs = [yaml.safe_load(file.read_text()) for file in Path("sweep").glob("*/config.yaml")]
    found = sorted((config["seed"], config["optimizer"]["lr"]) for config in configs)
    assert [seed for seed, _ in found] == [0, 1, 1, 1, 2]


@pytest.mark.parametrize("given", ["run", "run/checkpoints", "run/checkpoints/last", "run/checkpoints/00000004"])
def test_evaluation_repeats_the_runs_own(trained: list[str], given: str) -> None:
    evaluate.main([*trained, f"checkpoint={given}", "output_dir=again"])
    own_file, again = Path("run/eval/00000004/eval.json"), Path("again/eval.json")
    assert json.loads(again.read_text())["episodes"] == json.loads(own_file.read_text())["episodes"]


def test_evaluation_takes_overrides(trained: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    evaluate.main([*trained, "checkpoint=run", "eval.n_episodes=3", "+env.obs_type=noisy", "output_dir=again"])
    assert len(json.loads(Path("again/eval.json").read_text())["episodes"]) == 3
    out = capfd.readouterr().out
    assert "success_rate" in out
    assert f"are in {Path('again').absolute()}" in out


MISTAKES = {
    "none": ([], "checkpoint: it is missing; write robolearn-eval checkpoint="),
    "folder": (["checkpoint=nowhere"], "checkpoint=nowhere: there is no such folder"),
    "hub": (["checkpoint=me/nothing"], "add download=true"),
    "other folder": (["checkpoint=."], "no checkpoint is in this folder"),
    "key": (["checkpoint=run", "eval.n_episode=3"], "did you mean 'eval.n_episodes'?"),
    "key of training": (["checkpoint=run", "batch_size=3"], "did you mean 'eval.batch_size'?"),
    "type": (["checkpoint=run", "eval.n_episodes=many"], "Evaluator takes an integer, not 'many'"),
    "rule": (["checkpoint=run", "eval.n_episodes=1"], "eval.batch_size=2"),
    "device": (["checkpoint=run", "device=gpu"], "device=gpu: it is none of cuda"),
    "simulator": (["checkpoint=run", "env=none"], "choose one with env=NAME"),
    "unknown simulator": (["checkpoint=run", "env=lin"], "there is no 'lin' in env (did you mean 'line'?)"),
    "two checkpoints": (["-m", "checkpoint=run,run/checkpoints/00000002"], "one checkpoint at a time"),
}


def test_mistakes_of_an_evaluation(trained: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for argv, text in MISTAKES.values():
        assert text in fails(evaluate.main, [*trained, *argv], capfd)
    assert not Path("outputs").exists()
    weights = Path("run/checkpoints/00000004/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged" in fails(evaluate.main, [*trained, "checkpoint=run"], capfd)


def test_fresh_run_names_the_unfinished_one_of_equal_configuration(own: Own, capfd: pytest.CaptureFixture[str]) -> None:
    argv = [*own(FILES), *SMALL]
    train.main(argv)
    (status,) = Path("outputs/train").glob("*/*/status.json")
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "interrupted"}))
    capfd.readouterr()
    train.main(argv)
    assert f"output_dir={status.parent.absolute()} resumes it" in capfd.readouterr().out


def test_mistake_that_shows_only_when_built(own: Own, capfd: pytest.CaptureFixture[str], monkeypatch) -> None:
    import fakes.line_env

    from robolearn.errors import UserError

    def broken(self: fakes.line_env.LineDataset, device: object) -> None:
        raise UserError("The video of episode 3 is cut off.")

    monkeypatch.setattr(fakes.line_env.LineDataset, "load", broken)
    options = own(FILES)
    assert fails(train.main, [*options, *SMALL, "output_dir=a"], capfd) == "The video of episode 3 is cut off.\n"
    with pytest.raises(SystemExit):  # Hydra's own end of a sweep; both jobs were tried
        train.main(["-m", *options, *SMALL, "seed=1,2", "hydra.sweep.dir=sweep"])
    states = [json.loads(file.read_text())["state"] for file in Path("sweep").glob("*/status.json")]
    assert states == ["failed", "failed"]
