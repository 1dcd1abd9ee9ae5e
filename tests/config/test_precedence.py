"""Command line > +experiment > policy preset > group default."""

from collections.abc import Callable

import pytest

from robolearn.config.compose import Job

Composed = Callable[..., list[Job]]
Own = Callable[[dict[str, str]], list[str]]

PRESET = {
    "policy/mine": "# @package _global_\ndefaults: [{override /optimizer: sgd}]\nuse_ema: true\n"
    "policy: {_target_: fakes.line_env.Linear, _partial_: true, n_action_steps: 3}\n",
    "experiment/tuned": "# @package _global_\ndefaults: [{override /policy: mine}]\nbatch_size: 5\n"
    "optimizer: {lr: 0.5}\npolicy: {n_action_steps: 7}\nuse_ema: false\n",
    "experiment/adam": "# @package _global_\ndefaults: [{override /policy: mine}, {override /optimizer: adam}]\n",
}


def test_group_default(composed: Composed, own: Own) -> None:
    plain = {"policy/plain": "_target_: fakes.line_env.Linear\n_partial_: true\n"}
    cfg = composed(*own(plain), "policy=plain")[0].cfg
    assert cfg.optimizer._target_ == "torch.optim.AdamW"
    assert cfg.use_ema is False


def test_policy_preset_beats_group_default(composed: Composed, own: Own) -> None:
    cfg = composed(*own(PRESET), "policy=mine")[0].cfg
    assert cfg.optimizer._target_ == "torch.optim.SGD"
    assert cfg.use_ema is True


def test_experiment_beats_policy_preset(composed: Composed, own: Own) -> None:
    options = own(PRESET)
    cfg = composed(*options, "+experiment=tuned")[0].cfg
    assert (cfg.batch_size, cfg.optimizer.lr, cfg.policy.n_action_steps, cfg.use_ema) == (5, 0.5, 7, False)
    assert cfg.optimizer._target_ == "torch.optim.SGD"
    assert composed(*options, "+experiment=adam")[0].cfg.optimizer._target_ == "torch.optim.Adam"


def test_command_line_beats_everything(composed: Composed, own: Own) -> None:
    cfg = composed(*own(PRESET), "+experiment=tuned", "batch_size=9", "optimizer.lr=0.1", "optimizer=adamw")[0].cfg
    assert (cfg.batch_size, cfg.optimizer.lr) == (9, 0.1)
    assert cfg.optimizer._target_ == "torch.optim.AdamW"


@pytest.mark.parametrize("order", [["optimizer=sgd", "policy=diffusion"], ["policy=diffusion", "optimizer=sgd"]])
def test_optimizer_on_the_command_line_always_wins(composed: Composed, order: list[str]) -> None:
    optimizer = composed(*order)[0].cfg.optimizer
    assert optimizer._target_ == "torch.optim.SGD"
    assert "betas" not in optimizer  # nothing of the policy's preset leaks into it


def test_env_chooses_its_dataset_unless_told_otherwise(composed: Composed, own: Own) -> None:
    from fakes.line_env import FILES

    options = own(FILES)
    assert composed(*options, "env=line")[0].cfg.dataset._target_ == "fakes.line_env.LineDataset"
    assert composed(*options, "env=line", "dataset=pusht")[0].cfg.dataset._target_ != "fakes.line_env.LineDataset"


def test_no_simulator(composed: Composed) -> None:
    job = composed("env=none")[0]
    assert job.cfg.env is None
    assert job.cfg.job_name == "diffusion"


def test_run_folder(composed: Composed) -> None:
    job = composed()[0]
    assert str(job.folder) == job.cfg.output_dir
    assert job.cfg.output_dir.startswith("outputs/train/")
    assert job.cfg.output_dir.endswith("_pusht_diffusion")
    assert composed("output_dir=a/b")[0].folder.as_posix() == "a/b"
    assert composed("hydra.run.dir=c")[0].folder.as_posix() == "c"
    assert composed()[0].folder != job.folder


def test_every_job_of_a_sweep(composed: Composed, own: Own) -> None:
    jobs = composed("-m", "seed=range(1,4)", "optimizer=sgd,adam", "batch_size=choice(4,8)")
    assert len(jobs) == 12
    assert len({job.folder for job in jobs}) == 12
    assert len({job.folder.parent for job in jobs}) == 1
    sweep = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '1,2', optimizer.lr: '0.1,0.2'}}}\n"
    jobs = composed(*own({"experiment/sweep": sweep}), "+experiment=sweep")
    assert [(job.cfg.seed, job.cfg.optimizer.lr) for job in jobs] == [(1, 0.1), (1, 0.2), (2, 0.1), (2, 0.2)]
    assert len(composed(*own({}), "-m", "policy=glob(*)")) >= 1
