"""A stranger's checkpoint builds what robolearn ships, and what the user names; nothing else is even imported."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.errors import refused
from fakes.line_env import FILES, SMALL

from robolearn.checkpoints import locate
from robolearn.cli import collect, evaluate, train
from robolearn.config.compose import parse
from robolearn.config.trust import Trust, shipped_targets
from robolearn.errors import UserError

FILE = Path("config.yaml")
PUSHT = {"_target_": "robolearn.envs.PushT", "fps": 10}
POLICY = {"_target_": "robolearn.policies.diffusion.DiffusionPolicy", "_partial_": True, "horizon": 16}
BAD = {"_target_": "this.nothing"}
GYM = {"_target_": "robolearn.envs.EnvFactory", "id": "x/Y-v0", "package": "this", "environ": {"LD_PRELOAD": "x.so"}}


def admit(nodes: dict[str, Any], *argv: str) -> dict[str, Any]:
    return Trust.of(parse(argv, "train")).admit(FILE, nodes)


def test_every_node_of_ours_is_admitted() -> None:
    for key, names in shipped_targets().items():
        assert names
        for name in names:
            node = {"_target_": name, "_partial_": True, "a": [1, {"b": None}]}
            assert admit({key: node, "param_groups": {}, "use_ema": True}) == {
                key: node,
                "param_groups": {},
                "use_ema": True,
            }


@pytest.mark.parametrize(
    ("nodes", "key"),
    [
        ({"env": BAD}, "env._target_"),
        ({"env": {**PUSHT, "fps": BAD}}, "env.fps._target_"),
        ({"env": {**PUSHT, "kwargs": [[{"a": BAD}]]}}, "env.kwargs[0][0].a._target_"),
        ({"env": {**PUSHT, "fps": {**PUSHT}}}, "env.fps._target_"),
        ({"env": POLICY}, "env._target_"),
        ({"env": GYM}, "env._target_"),
        ({"env": {**PUSHT, "_args_": ["x"]}}, "env._args_"),
        ({"env": {**PUSHT, "_recursive_": False}}, "env._recursive_"),
        ({"env": {**PUSHT, "_partial_": BAD}}, "env._partial_"),
        ({"env": {"fps": 1, "_partial_": True}}, "env._partial_"),
        ({"env": {"_target_": ["os.system"]}}, "env._target_"),
        ({"policy": {**POLICY, "beta_end": {"_call_": 1}}}, "policy.beta_end._call_"),
        ({"policy": {**POLICY, "_target_": "robolearn.runs.logger.Logger"}}, "policy._target_"),
        ({"policy": {**POLICY, "_target_": "robolearn.system.files.write_text"}}, "policy._target_"),
        ({"policy": {**POLICY, "_target_": "robolearn.policies.act.torch.load"}}, "policy._target_"),
        ({"optimizer": {"_target_": "torch.optim.Adam", "lr": BAD}}, "optimizer.lr._target_"),
        ({"optimizer": {"_target_": "torch.load"}}, "optimizer._target_"),
        ({"ema": BAD}, "ema._target_"),
        ({"param_groups": {"backbone": {"lr": BAD}}}, "param_groups.backbone.lr._target_"),
        ({"grad_clip_norm": BAD}, "grad_clip_norm._target_"),
    ],
)
def test_what_is_refused(nodes: dict[str, Any], key: str) -> None:
    assert "trust_checkpoint=true" in str(refused(key, admit, nodes))
    assert admit(nodes, "trust_checkpoint=true") == nodes
    refused(key, admit, nodes, "trust_checkpoint=false", "+env.kwargs={a: 1}", "+trust=true")


@pytest.mark.parametrize("argv", [["env=pusht"], ["env._target_=mine.Env"], ["~env"], ["env._target_=a.B,c.D"]])
def test_what_the_command_line_replaces_is_not_looked_at(argv: list[str]) -> None:
    assert "this" not in str(admit({"env": {**BAD, "fps": 3}}, *argv))
    refused("policy._target_", admit, {"policy": BAD, "env": None}, *argv)


@pytest.mark.parametrize("argv", [["env={fps: 3}"], ["env=checkpoint"], ["env.fps=3"], ["policy=pretrained"]])
def test_what_it_keeps_is(argv: list[str]) -> None:
    refused("env._target_", admit, {"env": {**BAD, "fps": 3}}, *argv)


def test_files_of_the_users_own_name_what_may_be_built(tmp_path: Path) -> None:
    (tmp_path / "env").mkdir()
    (tmp_path / "env/a.yaml").write_text(yaml.safe_dump({"env": {**GYM, "package": "mine", "environ": None}}))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/b.yaml").write_text("x: [{_target_: mine.Encoder}]")
    (tmp_path / "env/broken.yaml").write_text("x: [")
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded/config.yaml").write_text(yaml.safe_dump({"env": BAD}))
    own = ["--config-dir", str(tmp_path)]
    nodes = {"policy": {**POLICY, "encoder": {"_target_": "mine.Encoder", "_args_": [1]}}}
    assert admit(nodes, *own) == nodes
    assert admit({"env": {**GYM, "package": "mine", "environ": None}}, *own)
    for other in ({"package": "this", "environ": None}, {"package": "mine"}, {"package": "mine", "id": "this:Y-v0"}):
        refused("env._target_", admit, {"env": {**GYM, **other}}, *own)
    refused("env._target_", admit, {"env": BAD}, *own)


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a ${now:%Y}", "\\${x}", "${"])
@pytest.mark.parametrize("key", ["policy.name", "policy.list[0]", "env.instruction", "job_name"])
def test_texts_are_never_interpolations(tmp_path: Path, key: str, text: str) -> None:
    run: dict[str, Any] = {"policy": {**POLICY}, "env": {**PUSHT}, "job_name": "a"}
    group, _, name = key.partition(".")
    if name:
        run[group]["list" if "[" in name else name] = [text] if "[" in name else text
    else:
        run[key] = text
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(run))
    refused(key.replace("[0]", ".0"), evaluate.read_config, tmp_path, Trust(("trust_checkpoint=true",)))


BOMB = ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefg", "bcdefgh", strict=True))


@pytest.mark.parametrize(
    "value", ["2026-01-01", "!!binary aGVsbG8=", "!!set {a}", "&a [*a]", f"[&a [1], {BOMB}]", "[" * 200 + "]" * 200]
)
def test_values_are_plain_and_few(tmp_path: Path, value: str) -> None:
    (tmp_path / "config.yaml").write_text(f"policy: {{_target_: x.Y, bad: {value}}}")
    with pytest.raises(UserError):
        locate.checkpoint_config(tmp_path)


@pytest.mark.parametrize("option", [{"_target_": "os.system"}, {"horizon": BAD}, {"vision_backbone": "${oc.env:HOME}"}])
def test_files_of_lerobot_are_no_better(tmp_path: Path, option: dict[str, Any]) -> None:
    from fakes import lerobot

    (tmp_path / "config.json").write_text(json.dumps(lerobot.config("diffusion", **option)))
    with pytest.raises(UserError):
        Trust().admit(FILE, locate.checkpoint_config(tmp_path))


def test_a_checkpoint_cannot_ask_for_the_network(tmp_path: Path) -> None:
    node = {"_target_": "robolearn.policies.pi0.Pi0Policy", "download": True}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"policy": node}))
    assert locate.policy_node(tmp_path)["download"] is False


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A checkpoint whose configuration imports a module, in each of the nodes that are inherited."""
    run = {"policy": {**POLICY, "horizon": BAD}, "env": {**PUSHT, "fps": BAD}, "optimizer": BAD, "hydra": BAD}
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/config.yaml").write_text(yaml.safe_dump({**run, "trust_checkpoint": True}))
    (tmp_path / "evil/model.safetensors").touch()
    return tmp_path / "evil"


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (evaluate.main, ["checkpoint={}"]),
        (evaluate.main, ["checkpoint={}", "env=pusht", "policy.typo=1"]),
        (evaluate.main, ["checkpoint={}", "--cfg", "job"]),
        (train.main, ["policy.path={}", "dataset=lerobot"]),
        (train.main, ["policy.path={}", "policy._target_=robolearn.policies.act.ActPolicy", "policy.typo=1"]),
        (collect.main, ["policy.path={}", "out=new"]),
    ],
)
def test_every_command_refuses_before_anything_is_imported(
    main: Callable[..., None], argv: list[str], evil: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([text.format(evil) for text in argv])
    assert stop.value.code == 2
    assert "trust_checkpoint=true" in capfd.readouterr().err
    assert "this" not in sys.modules
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["x/../../../../../PWNED", "..", "x" * 250])
def test_the_name_of_a_run_leads_nowhere(evil: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    sound = {"policy": POLICY, "env": PUSHT, "eval": {"_target_": "robolearn.rollouts.evaluation.Evaluator"}}
    (evil / "config.yaml").write_text(yaml.safe_dump({**sound, "job_name": name}))
    for main, argv in ((evaluate.main, [f"checkpoint={evil}"]), (train.main, [f"job_name={name}"])):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 2
        assert capfd.readouterr().err.startswith("job_name ")
    assert list(Path.cwd().iterdir()) == []


def test_a_policy_and_a_simulator_of_ones_own(
    own: Callable[[dict[str, str]], list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    options = own(FILES)
    train.main([*options, *SMALL, "output_dir=run"])
    with pytest.raises(SystemExit):
        evaluate.main(["checkpoint=run", "output_dir=a"])
    assert "fakes.line_env.Linear" in capfd.readouterr().err
    named = ["policy._target_=fakes.line_env.Linear", "env._target_=fakes.line_env.LineSimulator"]
    for number, argv in enumerate((options, ["trust_checkpoint=true"], named)):
        evaluate.main([*argv, "checkpoint=run", f"output_dir=again{number}"])
        assert Path(f"again{number}/eval.json").is_file()
    tuned = [*SMALL[1:], *options, "policy.path=run", "output_dir=tuned"]
    train.main(tuned)
    assert Path("tuned/checkpoints/last").is_dir()
    small = ["env=line", "episodes=1", "video=false", "keep_failures=true", "policy.batch_size=1", "device=cpu"]
    collect.main([*options, *small, "policy.path=run", "out=data"])
    assert Path("data/meta/info.json").is_file()
