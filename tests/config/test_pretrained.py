"""policy.path: what a checkpoint says becomes the configuration, under every key given beside it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import lerobot
from omegaconf import OmegaConf

from robolearn.cli.train import main
from robolearn.config.compose import Job, compose, parse
from robolearn.config.pretrained_group import register_from_command_line
from robolearn.config.validate import check_targets

Composed = Callable[..., list[Job]]
HERE = Path(__file__).resolve().parents[1]


@pytest.fixture
def composed() -> Composed:
    def run(*argv: str) -> list[Job]:
        return compose(register_from_command_line(parse(argv, "train")), "train")

    return run


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., str]:
    """A folder of LeRobot's."""

    def write(kind: str, name: str = "published") -> str:
        return str(lerobot.write(tmp_path / name, lerobot.config(kind)))

    return write


@pytest.mark.parametrize("kind", sorted(lerobot.SMALL))
def test_sizes_and_presets_are_the_checkpoints(published: Callable[..., str], composed: Composed, kind: str) -> None:
    folder, theirs = published(kind), lerobot.config(kind)
    (job,) = composed(f"policy.path={folder}")
    assert check_targets(job.cfg) == []
    cfg = job.cfg
    assert cfg.policy.path == folder
    assert cfg.policy._target_.endswith("Policy")
    same = cfg.policy.keys() & theirs.keys() - {"normalization_mapping", "pretrained_backbone_weights"}
    same -= {"drop_n_last_frames"}
    assert len(same) > 5
    assert {key: cfg.policy[key] for key in same} == {key: theirs[key] for key in same}
    assert cfg.policy.normalization_mapping.ENV == "IDENTITY"
    assert cfg.optimizer.lr == 2e-4 if kind != "act" else 2e-5
    assert "${" not in str(cfg)


def test_optimizer_and_schedule_of_diffusion(published: Callable[..., str], composed: Composed) -> None:
    cfg = composed(f"policy.path={published('diffusion')}")[0].cfg
    given = {"lr": 2e-4, "betas": [0.9, 0.99], "eps": 1e-7, "weight_decay": 1e-5}
    assert given.items() <= dict(cfg.optimizer).items()
    assert cfg.optimizer._target_ == "torch.optim.Adam"
    assert (cfg.scheduler.name, cfg.scheduler.num_warmup_steps) == ("linear", 3)
    assert cfg.policy.final_n_groups == 8


def test_parameter_groups(published: Callable[..., str], composed: Composed) -> None:
    assert composed(f"policy.path={published('act', 'a')}")[0].cfg.param_groups == {"backbone": {"lr": 3e-5}}
    cfg = composed(f"policy.path={published('vqbet', 'b')}")[0].cfg
    assert cfg.param_groups.tokenizer == {"lr": 2e-3, "weight_decay": 2e-4}
    assert cfg.scheduler.num_vqvae_training_steps == cfg.policy.n_vqvae_training_steps == 0


def test_keys_beside_it_win(published: Callable[..., str], composed: Composed) -> None:
    path = f"policy.path={published('diffusion')}"
    for argv in ([path], ["policy=pretrained", path], [f"+{path}"]):
        cfg = composed(*argv, "policy.n_action_steps=2", "optimizer.lr=1", "optimizer=sgd", "scheduler=constant")[0].cfg
        assert (cfg.policy.n_action_steps, cfg.policy.horizon, cfg.optimizer.lr) == (2, 8, 1)
        assert cfg.optimizer._target_ == "torch.optim.SGD"
        assert "betas" not in cfg.optimizer
        assert "num_warmup_steps" not in cfg.scheduler


def test_a_sweep_shows_what_each_job_runs(published: Callable[..., str], composed: Composed) -> None:
    jobs = composed("-m", f"policy.path={published('tdmpc')}", "policy.horizon=3,4")
    assert [(job.cfg.policy.horizon, job.cfg.policy.mlp_dim) for job in jobs] == [(3, 8), (4, 8)]


def test_an_experiment_may_name_it(
    published: Callable[..., str], composed: Composed, own: Callable[[dict[str, str]], list[str]]
) -> None:
    text = (
        "# @package _global_\ndefaults: [{override /policy: pretrained}]\noptimizer: {lr: 0.5}\npolicy: {path: PATH}\n"
    )
    folder = own({"experiment/tune": text.replace("PATH", published("act"))})
    cfg = composed(*folder, "+experiment=tune", "policy.kl_weight=1")[0].cfg
    assert (cfg.policy.dim_model, cfg.optimizer.lr, cfg.policy.kl_weight) == (16, 0.5, 1)


def test_a_checkpoint_of_ours(tmp_path: Path, composed: Composed) -> None:
    (job,) = compose(
        parse(["policy=vqbet", "policy.gpt_n_layer=3", "optimizer.lr=7", "offline.steps=9"], "train"), "train"
    )
    folder = tmp_path / "run/checkpoints/00000500"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(job.cfg))
    (folder / "model.safetensors").touch()
    (folder.parent / "last").symlink_to(folder.name)
    cfg = composed(f"policy.path={tmp_path / 'run'}", "policy.dropout=0")[0].cfg
    assert (cfg.policy.gpt_n_layer, cfg.optimizer.lr, cfg.policy.dropout) == (3, 7, 0)
    assert cfg.policy.n_vqvae_training_steps == cfg.scheduler.num_vqvae_training_steps == 19500
    assert cfg.offline.steps == 100000
    assert cfg.param_groups.tokenizer.lr == 0.001


MISTAKES = {
    "another policy": (["policy=act", "policy.path={0}"], "policy=act: policy.path decides the policy"),
    "no path": (["policy=pretrained"], "policy.path: it is missing; write policy.path=FOLDER_OR_HUB_ID"),
    "empty": (["policy.path="], "policy.path: it is missing"),
    "sweep": (["-m", "policy.path=a,b"], "policy.path=a,b: one checkpoint at a time"),
    "nowhere": (["policy.path=nowhere"], "policy.path=nowhere: there is no such folder"),
    "hub": (["policy.path=no/body"], "fetch it with: hf download no/body"),
    "no checkpoint": (["policy.path=."], "policy.path=.: no checkpoint is in this folder"),
    "typo": (["policy.path={0}", "policy.n_action_step=2"], "did you mean 'policy.n_action_steps'?"),
    "type": (["policy.path={0}", "policy.horizon=x"], "DiffusionPolicy takes an integer"),
    "sizes": (["policy.path={0}", "policy.down_dims=[8,24]", "dataset.root={1}"], "do not fit: unet."),
}


@pytest.mark.parametrize(("argv", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes(
    published: Callable[..., str],
    argv: list[str],
    expected: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from fakes.datasets import write_dataset

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = published("diffusion")
    data = write_dataset(tmp_path / "data") if "{1}" in str(argv) else None
    with pytest.raises(SystemExit) as stop:
        main([text.format(folder, data) for text in argv] + (["env=none"] if data else []))
    _, err = capfd.readouterr()
    assert stop.value.code == 2
    assert expected in err
    assert err.count("\n") == 1
