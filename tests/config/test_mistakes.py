"""Each mistake ends in one sentence on stderr and status 2, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.line_env import FILES, SMALL

from robolearn.cli.train import main
from robolearn.config.compose import Job
from robolearn.errors import UserError

Own = Callable[[dict[str, str]], list[str]]
Fails = Callable[..., str]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str]) -> Fails:
    """The sentence a command line ends with."""

    def run(*argv: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(argv)
        out, err = capfd.readouterr()
        assert stop.value.code == 2
        assert out == ""
        assert err.count("\n") == 1, err
        assert err.endswith(".\n")
        assert list(Path.cwd().iterdir()) == []
        return err

    return run


COMPOSED = {
    "key": (["sed=3"], "sed: conf/train.yaml has no key 'sed' (did you mean 'seed'?)"),
    "key of a group": (
        ["policy.horizn=8"],
        "policy.horizn: conf/policy/diffusion.yaml has no key 'horizn' (did you mean 'policy.horizon'?)",
    ),
    "key without its group": (["lr=0.1"], "did you mean 'optimizer.lr'?"),
    "key of another option": (["optimizer.momentum=0.9"], "optimizer=sgd would have it"),
    "key of LeRobot": (["policy.optimizer_lr=0.1"], "called optimizer.lr here"),
    "type of LeRobot": (["policy.type=diffusion"], "an option is chosen by its group: policy="),
    "dashes": (["--batch_size=8"], "keys are written without dashes here: batch_size=8"),
    "flag": (["--mutirun"], "did you mean '--multirun'?"),
    "group": (["polcy=diffusion"], "did you mean 'policy'?"),
    "group of nothing": (["robot@arm=x"], "there is no group 'robot'"),
    "option": (["policy=difusion"], "there is no 'difusion' in policy (did you mean 'diffusion'?)"),
    "experiment": (["+experiment=diffusion_psht"], "did you mean 'diffusion_pusht'?"),
    "experiment without plus": (["experiment=diffusion_pusht"], "added with a plus: +experiment="),
    "group with plus": (["+policy=diffusion"], "policy is chosen already; write policy=diffusion"),
    "null group": (["scheduler=null"], "scheduler is a group of files, so choose one of constant"),
    "group left out": (["~optimizer"], "optimizer cannot be left out; choose one of "),
    "launcher": (["-m", "hydra/launcher=slrm"], "did you mean 'slurm'?"),
    "launcher of one run": (["hydra/launcher=slurm"], "has an effect with --multirun only: add -m"),
    "text for a number": (["batch_size=many"], "batch_size takes an integer, not 'many'"),
    "fraction": (["batch_size=1.5"], "batch_size takes an integer, not '1.5'"),
    "boolean": (["use_amp=maybe"], "use_amp takes true or false, not 'maybe'"),
    "null": (["seed=null"], "seed cannot be null"),
    "no value": (["seed"], "seed: a value is missing; write seed=VALUE"),
    "no key": (["=3"], "this is no key=value"),
    "syntax": (["job_name=a(b"], "quote it"),
    "interpolation": (["offline.steps=${sed}"], "${sed} names no key (did you mean 'seed'?)"),
    "several values": (["seed=1,2"], "several values are a sweep, which needs --multirun"),
    "range": (["seed=range(1,3)"], "several values are a sweep"),
    "sweep: a value": (["-m", "seed=1,b"], "seed=b: seed takes an integer"),
    "sweep: an option": (["-m", "policy=diffusion,dif"], "there is no 'dif' in policy"),
    "sweep: a key": (["-m", "seed=1,2", "policy.horizn=8"], "did you mean 'policy.horizon'?"),
    "sweep: output_dir": (["-m", "seed=1,2", "output_dir=x"], "give the sweep's folder with hydra.sweep.dir="),
    "sweep: interval": (["-m", "seed=interval(1,2)"], "interval"),
    "sweep of Hydra": (["-m", "hydra.verbose=true,false"], "keys of hydra cannot be swept"),
    "parameter group": (["param_groups.backbone.lr=1"], "+param_groups.backbone.lr=1"),
    "plus before a key": (["+seed=3"], "this key exists already; write it without the plus"),
    "key deleted": (["~sed"], "there is no such key to delete"),
    "config dir": (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder"),
    "config path": (["--config-path", "x"], "--config-dir"),
    "config name": (["--config-name", "trian"], "--config-name trian: there is no such file (did you mean 'train'?)"),
    "two modes": (["-m", "--cfg", "job"], "only one of"),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_on_the_command_line(fails: Fails, name: str) -> None:
    argv, text = COMPOSED[name]
    assert text in fails(*argv)


KEYS = {
    "sed=3": "sed",
    "policy.horizn=8": "policy.horizn",
    "polcy=diffusion": "polcy",
    "policy=difusion": "policy",
    "batch_size=many": "batch_size",
    "scheduler=null": "scheduler",
    "--config-dir=nowhere": "--config-dir",
    "seed=1,2": "seed",
    "offline.steps=${sed}": "offline.steps",
    "+seed=3": "seed",
}


@pytest.mark.parametrize("typed", KEYS)
def test_a_mistake_carries_its_key(composed: Callable[..., list[Job]], typed: str) -> None:
    with pytest.raises(UserError) as refusal:
        composed(typed)
    assert refusal.value.key == KEYS[typed]


GLOBAL = "# @package _global_\n"
IN_FILES = {
    "root key": ("sed: 3", "bad.yaml: there is no key 'sed' (did you mean 'seed'?)"),
    "root type": ("batch_size: many", "bad.yaml: batch_size takes an integer, not 'many'"),
    "option": ("defaults: [{override /policy: difusion}]", "there is no 'difusion' in policy"),
    "group": (
        "defaults: [{override /polcy: diffusion}]",
        "bad.yaml: there is no group 'polcy' (did you mean 'policy'?)",
    ),
    "launcher": ("defaults: [{override /hydra/launcher: slurm}]", "bad.yaml: Hydra chooses the launcher"),
    "yaml": ("policy: {horizon: 3", "bad.yaml, line"),
    "interpolation": ("policy: {horizon: '${sed}'}", "policy.horizon"),
    "boolean option": ("defaults: [{override /online: off}]", "bad.yaml: on, off, yes, no"),
}


@pytest.mark.parametrize("name", IN_FILES)
def test_in_an_experiment(fails: Fails, own: Own, name: str) -> None:
    text, sentence = IN_FILES[name]
    options = own({"experiment/bad": f"{GLOBAL}{text}\n"})
    assert sentence in fails(*options, "+experiment=bad")


def test_launcher_in_a_swept_experiment(fails: Fails, own: Own) -> None:
    text = f"{GLOBAL}defaults: [{{override /hydra/launcher: slurm}}]\n"
    options = own({"experiment/a": text, "experiment/b": GLOBAL})
    assert "a.yaml: Hydra chooses the launcher" in fails(*options, "-m", "+experiment=b,a")


CHECKED = {
    "leftover key": (
        ["+experiment=small", "policy=diffusion"],
        "small.yaml, made for policy=linear): DiffusionPolicy takes no 'gains'",
    ),
    "added key": (
        ["+policy.horizn=8", "policy=diffusion"],
        "(the command line): DiffusionPolicy takes no 'horizn' (did you mean 'horizon'?)",
    ),
    "argument's type": (
        ["policy=diffusion", "policy.horizon=long"],
        "DiffusionPolicy takes an integer, not 'long'",
    ),
    "argument's choice": (["+env.obs_type=nosy"], "takes 'state' or 'noisy', not 'nosy' (did you mean 'noisy'?)"),
    "argument not listed": (["env.obs_type=noisy"], "add it with a plus: +env.obs_type=noisy"),
    "argument's list": (["+policy.gains=3"], "Linear takes a list of numbers, not 3"),
    "boolean for a number": (["policy.n_action_steps=true"], "takes an integer, not true"),
    "target": (
        ["policy._target_=fakes.line_env.Linaer"],
        "cannot be imported: fakes.line_env has no 'Linaer' (did you mean 'Linear'?)",
    ),
    "module": (["policy._target_=toy.Linear"], "set PYTHONPATH"),
    "target's class": (["policy._target_=collections.OrderedDict", "~policy.n_action_steps"], "policy"),
    "supplied argument": (["+optimizer.params=1"], "SGD gets 'params' from the run, so remove this key"),
    "constructor's rule": (["policy.n_action_steps=0"], "policy.n_action_steps=0: it must be positive"),
    "constructor of the simulator": (["env.size=0"], "env.size=0: it must be positive"),
    "dataset": (["dataset.root=nowhere"], "dataset.root=nowhere: there is no such folder"),
    "optimizer": (["optimizer.lr=-1"], "optimizer.lr=-1: Invalid learning rate: -1"),
    "parameter group": (["+param_groups.backbon.lr=1"], "param_groups.backbon"),
    "option of a parameter group": (["+param_groups.policy.lrr=1"], "SGD has no option 'lrr' (did you mean 'lr'?)"),
    "value of a parameter group": (["+param_groups.policy.lr=-1"], "param_groups.policy.lr=-1: Invalid learning"),
    "batch size": (["batch_size=0"], "batch_size=0 (the command line) must be at least 1"),
    "workers": (["num_workers=-1"], "num_workers=-1 (the command line) must be at least 0"),
    "steps": (["offline.steps=-1"], "offline.steps=-1 (the command line) must be at least 0"),
    "online": (["online.steps=5"], "online.steps_between_rollouts is missing"),
    "precision": (["amp_dtype=bfloat61"], "did you mean 'bfloat16'?"),
    "device's name": (["device=gpu"], "device=gpu: it is none of cuda"),
    "no run": (["resume=must", "output_dir=a"], "resume=must: a holds no run"),
    "resume": (["resume=yes"], "resume (the command line) takes 'auto' or 'must' or 'never', not 'yes'"),
    "unknown group scalars": (["env=none", "+env.size=3"], "env has no _target_"),
    "sweep: a later job": (
        ["-m", "policy.n_action_steps=1,0"],
        "Job 1 of the sweep (policy.n_action_steps=0): policy.n_action_steps=0: it must",
    ),
}


@pytest.mark.parametrize("name", CHECKED)
def test_before_anything_is_built(fails: Fails, own: Own, name: str) -> None:
    argv, text = CHECKED[name]
    leftover = f"{GLOBAL}defaults: [{{override /policy: linear}}]\npolicy: {{gains: [1.0]}}\n"
    assert text in fails(
        *own({**FILES, "experiment/small": leftover}), *SMALL[:1] * ("+experiment=small" not in argv), *SMALL[1:], *argv
    )


def test_no_gpu(fails: Fails, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = [*own(FILES), *SMALL, "device=cuda"]
    assert fails(*argv).startswith("device=cuda: no GPU is visible here; use device=cpu.")
