"""Each mistake ends in one sentence on stderr and status 2, and nothing is written."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.line_env import FILES, SMALL
from fakes.refusals import Refuses

from robolearn.cli.train import main

Own = Callable[[dict[str, str]], list[str]]
Fails = Callable[..., None]


@pytest.fixture
def fails(capfd: pytest.CaptureFixture[str], refuses: Refuses) -> Fails:
    """Expect a command line to end with a sentence about a key, and nothing else."""

    def run(key: str | Path, *argv: str) -> None:
        with refuses(key) as refusal:
            main(argv)
        assert refusal.status == 2
        assert capfd.readouterr() == ("", f"{refusal.error}\n")
        assert str(refusal.error).endswith(".")
        assert list(Path.cwd().iterdir()) == []

    return run


COMPOSED = {
    "key": (["sed=3"], "sed"),
    "key of a group": (["policy.horizn=8"], "policy.horizn"),
    "key without its group": (["lr=0.1"], "lr"),
    "key of another option": (["optimizer.momentum=0.9"], "optimizer.momentum"),
    "key of LeRobot": (["policy.optimizer_lr=0.1"], "policy.optimizer_lr"),
    "type of LeRobot": (["policy.type=diffusion"], "policy.type"),
    "dashes": (["--batch_size=8"], "--batch_size=8"),
    "flag": (["--mutirun"], "--mutirun"),
    "group": (["polcy=diffusion"], "polcy"),
    "group of nothing": (["robot@arm=x"], "robot@arm"),
    "option": (["policy=difusion"], "policy"),
    "experiment": (["+experiment=diffusion_psht"], "experiment"),
    "experiment without plus": (["experiment=diffusion_pusht"], "experiment"),
    "group with plus": (["+policy=diffusion"], "policy"),
    "null group": (["scheduler=null"], "scheduler"),
    "group left out": (["~optimizer"], "optimizer"),
    "launcher": (["-m", "hydra/launcher=slrm"], "hydra/launcher"),
    "launcher of one run": (["hydra/launcher=slurm"], "hydra/launcher"),
    "text for a number": (["batch_size=many"], "batch_size"),
    "fraction": (["batch_size=1.5"], "batch_size"),
    "boolean": (["use_amp=maybe"], "use_amp"),
    "null": (["seed=null"], "seed"),
    "no value": (["seed"], "seed"),
    "no key": (["=3"], "=3"),
    "syntax": (["job_name=a(b"], "job_name"),
    "interpolation": (["offline.steps=${sed}"], "offline.steps"),
    "several values": (["seed=1,2"], "seed"),
    "range": (["seed=range(1,3)"], "seed"),
    "sweep: a value": (["-m", "seed=1,b"], "seed"),
    "sweep: an option": (["-m", "policy=diffusion,dif"], "policy"),
    "sweep: a key": (["-m", "seed=1,2", "policy.horizn=8"], "policy.horizn"),
    "sweep: output_dir": (["-m", "seed=1,2", "output_dir=x"], "output_dir"),
    "sweep: interval": (["-m", "seed=interval(1,2)"], "seed"),
    "sweep of Hydra": (["-m", "hydra.verbose=true,false"], "hydra.verbose"),
    "parameter group": (["param_groups.backbone.lr=1"], "param_groups.backbone.lr"),
    "plus before a key": (["+seed=3"], "seed"),
    "key deleted": (["~sed"], "sed"),
    "config dir": (["--config-dir", "nowhere"], "--config-dir"),
    "config path": (["--config-path", "x"], "--config-path"),
    "config name": (["--config-name", "trian"], "--config-name"),
    "two modes": (["-m", "--cfg", "job"], "--multirun"),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_on_the_command_line(fails: Fails, name: str) -> None:
    argv, key = COMPOSED[name]
    fails(key, *argv)


GLOBAL = "# @package _global_\n"
# Where no key is named, the mistake is the file's.
IN_FILES = {
    "root key": ("sed: 3", None),
    "root type": ("batch_size: many", None),
    "option": ("defaults: [{override /policy: difusion}]", None),
    "group": ("defaults: [{override /polcy: diffusion}]", None),
    "launcher": ("defaults: [{override /hydra/launcher: slurm}]", "hydra/launcher"),
    "yaml": ("policy: {horizon: 3", None),
    "interpolation": ("policy: {horizon: '${sed}'}", "policy.horizon"),
    "boolean option": ("defaults: [{override /online: off}]", None),
}


@pytest.mark.parametrize("name", IN_FILES)
def test_in_an_experiment(fails: Fails, own: Own, name: str, tmp_path: Path) -> None:
    text, key = IN_FILES[name]
    options = own({"experiment/bad": f"{GLOBAL}{text}\n"})
    fails(key or tmp_path / "conf/experiment/bad.yaml", *options, "+experiment=bad")


def test_launcher_in_a_swept_experiment(fails: Fails, own: Own) -> None:
    text = f"{GLOBAL}defaults: [{{override /hydra/launcher: slurm}}]\n"
    options = own({"experiment/a": text, "experiment/b": GLOBAL})
    fails("hydra/launcher", *options, "-m", "+experiment=b,a")


CHECKED = {
    "leftover key": (["+experiment=small", "policy=diffusion"], "policy.gains"),
    "added key": (["+policy.horizn=8", "policy=diffusion"], "policy.horizn"),
    "argument's type": (["policy=diffusion", "policy.horizon=long"], "policy.horizon"),
    "argument's choice": (["+env.obs_type=nosy"], "env.obs_type"),
    "argument not listed": (["env.obs_type=noisy"], "env.obs_type"),
    "argument's list": (["+policy.gains=3"], "policy.gains"),
    "boolean for a number": (["policy.n_action_steps=true"], "policy.n_action_steps"),
    "target": (["policy._target_=fakes.line_env.Linaer"], "policy._target_"),
    "module": (["policy._target_=toy.Linear"], "policy._target_"),
    "target's class": (["policy._target_=collections.OrderedDict", "~policy.n_action_steps"], "policy._target_"),
    "supplied argument": (["+optimizer.params=1"], "optimizer.params"),
    "constructor's rule": (["policy.n_action_steps=0"], "policy.n_action_steps"),
    "constructor of the simulator": (["env.size=0"], "env.size"),
    "dataset": (["dataset.root=nowhere"], "dataset.root"),
    "optimizer": (["optimizer.lr=-1"], "optimizer.lr"),
    "parameter group": (["+param_groups.backbon.lr=1"], "param_groups.backbon"),
    "option of a parameter group": (["+param_groups.policy.lrr=1"], "param_groups.policy.lrr"),
    "value of a parameter group": (["+param_groups.policy.lr=-1"], "param_groups.policy.lr"),
    "batch size": (["batch_size=0"], "batch_size"),
    "workers": (["num_workers=-1"], "num_workers"),
    "steps": (["offline.steps=-1"], "offline.steps"),
    "online": (["online.steps=5"], "online.steps_between_rollouts"),
    "precision": (["amp_dtype=bfloat61"], "amp_dtype"),
    "device's name": (["device=gpu"], "device"),
    "no run": (["resume=must", "output_dir=a"], "resume"),
    "resume": (["resume=yes"], "resume"),
    "unknown group scalars": (["env=none", "+env.size=3"], "env"),
    "sweep: a later job": (["-m", "policy.n_action_steps=1,0"], "policy.n_action_steps"),
}


@pytest.mark.parametrize("name", CHECKED)
def test_before_anything_is_built(fails: Fails, own: Own, name: str) -> None:
    argv, key = CHECKED[name]
    leftover = f"{GLOBAL}defaults: [{{override /policy: linear}}]\npolicy: {{gains: [1.0]}}\n"
    fails(
        key,
        *own({**FILES, "experiment/small": leftover}),
        *SMALL[:1] * ("+experiment=small" not in argv),
        *SMALL[1:],
        *argv,
    )


def test_no_gpu(fails: Fails, own: Own, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    argv = [*own(FILES), *SMALL, "device=cuda"]
    fails("device", *argv)
