"""LeRobot's folders become policies that act as LeRobot's do, and go back bit by bit."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from fakes import lerobot
from fakes.parity import ACT, DIFFUSION, PI0, TDMPC, VQBET, parity
from safetensors.torch import load_file, save_file

from robolearn.checkpoints import locate
from robolearn.checkpoints.lerobot import registry
from robolearn.checkpoints.lerobot.export import export, training_fields
from robolearn.checkpoints.load import PretrainedCheckpoint
from robolearn.config.build import load_policy
from robolearn.errors import UserError
from robolearn.normalize import Normalizer

CPU = torch.device("cpu")
KINDS = sorted(lerobot.SMALL)


def message(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    return text


def test_checkpoints_are_found_and_read_without_any_policy():
    """What the trainer imports to start from a checkpoint knows no policy."""
    code = (
        "import sys; from robolearn.checkpoints import load, locate, store; "
        "print(*(name for name in sys.modules if name.startswith('robolearn.policies.')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["robolearn.policies.base"]


def test_an_export_of_a_run_has_the_presets_of_its_training(tmp_path):
    """Optimizer and schedule of our configuration files are recognised as those of LeRobot's preset."""
    for kind in registry.kinds():
        interop = registry.get_interop(kind)
        run = {
            "policy": registry.default_options("policy", kind),
            "optimizer": {**registry.default_options("optimizer", interop.optimizer), "lr": 0.5},
            "scheduler": {**registry.default_options("scheduler", interop.scheduler), "num_warmup_steps": 7},
            "param_groups": {"backbone": {"lr": 0.25}, "tokenizer": {"lr": 0.125, "weight_decay": 0.0}},
        }
        folder = tmp_path / kind / "00000001"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(run))
        fields = training_fields(kind, folder)
        assert fields["optimizer_lr"] == 0.5
        assert fields.get("scheduler_warmup_steps") == {"act": None, "tdmpc": None}.get(kind, 7)
        assert fields.get("optimizer_lr_backbone") == {"act": 0.25}.get(kind)
        assert fields.get("optimizer_vqvae_lr") == {"vqbet": 0.125}.get(kind)


@pytest.fixture(params=ACT + DIFFUSION + PI0 + TDMPC + VQBET)
def fixture_folder(request, shared, tmp_path):
    """A recorded run of the reference as a checkpoint of February 2025, and its state dict."""
    fixture = parity.Fixture(shared / "golden/public" / request.param)
    policy, normalizer = parity.build(fixture)
    options = {**fixture.config, "n_vqvae_training_steps": 0 if fixture.first_step else 1}
    kept = parity.weights.to_lerobot(fixture.config["type"], policy, normalizer, options)
    state = {row["name"]: fixture.weight(row) for row in fixture.state}
    # The rule of attention masks makes attention look ahead, which no policy does; pi0's expert has no output layer
    # here, and its words' embedding is dropped from files because it is the output layer, too.
    constant = (".attn.bias", "gemma_expert.lm_head.weight")
    for name in kept:
        if state[name] is None or name.endswith(constant):
            state[name] = kept[name]
    state = {name: state[name].to(kept[name].dtype, copy=True) for name in kept}
    return fixture, state, lerobot.write(tmp_path / "published", fixture.config, state)


def test_recorded_runs_load_act_and_go_back(fixture_folder, tmp_path):
    fixture, state, folder = fixture_folder
    policy, normalizer = load_policy(folder, CPU)
    if fixture.config["type"] == "pi0":
        policy.tokenizer = fixture.tokens
    # VQ-BeT's recordings attend ahead, and BatchNorm's act after a batch that it has learnt from.
    if "select_action" in fixture.tensors and not any(word in fixture.name for word in ("vqbet", "batchnorm")):
        worst = parity.Worst(fixture.tolerance)
        parity.check_actions(fixture, policy, normalizer, worst)
        assert worst.missed == {}
    if fixture.config["type"] == "diffusion" and fixture.config["n_groups"] != 8:
        assert locate.policy_node(folder)["final_n_groups"] == 8
    export(folder, tmp_path / "out", policy, normalizer, PretrainedCheckpoint(folder).spec())
    back = load_file(tmp_path / "out/model.safetensors")
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype, name
        assert torch.equal(back[name], value), name
    written = json.loads((tmp_path / "out/config.json").read_text())
    changed = {key for key, value in fixture.config.items() if written.get(key) != value}
    shrunk = {"vision", "language", "expert", "dtype", "tokenizer", "empty_cameras", "input_features"}
    changed -= shrunk if fixture.config["type"] == "pi0" else set()
    assert changed <= {"normalization_mapping", "mlp_hidden_dim", "n_vqvae_training_steps", "drop_n_last_frames"}


@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_are_the_same_policy(tmp_path, kind):
    config = lerobot.config(kind)
    older = load_policy(lerobot.write(tmp_path / "a", config), CPU)
    newer = load_policy(lerobot.write(tmp_path / "b", config, later=True), CPU)
    for one, other in zip(older, newer, strict=True):
        assert one.state_dict().keys() == other.state_dict().keys()
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_an_export_is_read_in_both_layouts(tmp_path):
    folder = lerobot.write(tmp_path / "a", lerobot.config("diffusion"))
    policy, normalizer = load_policy(folder, CPU)
    export(folder, tmp_path / "out", policy, normalizer, PretrainedCheckpoint(folder).spec())
    steps = json.loads((tmp_path / "out/policy_preprocessor.json").read_text())["steps"]
    statistics = load_file(tmp_path / "out" / steps[-1]["state_file"])
    assert torch.equal(statistics["action.max"], normalizer.stats["action"].max)
    assert "exists already" in message(
        export, folder, tmp_path / "out", policy, normalizer, PretrainedCheckpoint(folder).spec()
    )
    _, again = load_policy(tmp_path / "out", CPU)
    assert torch.equal(again.stats["observation_image"].mean, normalizer.stats["observation_image"].mean)


def test_a_single_encoder_of_its_own_has_a_number(tmp_path):
    config = lerobot.config("diffusion", use_separate_rgb_encoder_per_camera=True)
    policy, normalizer = parity.weights.build(config)
    state = parity.weights.to_lerobot("diffusion", policy, normalizer, config)
    folder = lerobot.write(tmp_path / "a", config, state)
    policy, normalizer = load_policy(folder, CPU)
    export(folder, tmp_path / "out", policy, normalizer, PretrainedCheckpoint(folder).spec())
    assert "diffusion.rgb_encoder.0.pool.pos_grid" in state
    assert load_file(tmp_path / "out/model.safetensors").keys() == state.keys()


def test_a_config_of_2024_is_read(tmp_path):
    config = lerobot.config("diffusion")
    shapes = {key: feature["shape"] for key, feature in config["input_features"].items()}
    old = {k: v for k, v in config.items() if not k.endswith(("_features", "_mapping")) and k != "type"}
    old |= {"input_shapes": shapes, "output_shapes": {"action": [2]}}
    old |= {"input_normalization_modes": {"observation.image": "mean_std", "observation.state": "min_max"}}
    old |= {"output_normalization_modes": {"action": "min_max"}}
    folder = lerobot.write(tmp_path / "old", old, lerobot.state(config))
    policy, _ = load_policy(folder, CPU)
    assert policy.spec.normalization_mapping == lerobot.MIN_MAX | {"ENV": "IDENTITY"}
    assert set(PretrainedCheckpoint(folder).spec().observation) == {"observation.image", "observation.state"}


MISTAKES = {
    "type": ({"type": "difusion"}, "type 'difusion' cannot be read (did you mean 'diffusion'?); those that can: act,"),
    "unknown field": ({"horizn": 8}, "horizn=8 is no field of LeRobot's diffusion that is known here (did you mean"),
    "unsupported value": ({"resize_shape": [84, 84]}, "resize_shape=[84, 84] is not supported; only null is"),
    "mode": ({"normalization_mapping": {"STATE": "QUANTILES"}}, "STATE is normalised by QUANTILES, which is none of"),
    "no features": ({"input_features": {}}, "input_features names no feature"),
    "half a feature": ({"input_features": {"observation.state": {"type": "STATE"}}}, "needs 'type' and 'shape'"),
    "no action": ({"output_features": {"a": {"type": "ACTION", "shape": [2]}}}, "output_features has no 'action'"),
    "kind": (
        {"input_features": {"observation.words": {"type": "LANGUAGE", "shape": [1]}}},
        "observation.words is of the type LANGUAGE, which no policy here observes",
    ),
    "sizes": ({"down_dims": [8, 24]}, "do not fit: unet."),
    "layers": ({"down_dims": [8, 16, 32]}, "do not fit: unet."),
    "rules": ({"horizon": 9}, "policy.horizon=9"),
}


@pytest.mark.parametrize(("options", "expected"), MISTAKES.values(), ids=MISTAKES)
def test_a_config_that_does_not_do_is_told(tmp_path, options, expected):
    state = lerobot.state(lerobot.config("diffusion"))
    folder = lerobot.write(tmp_path / "x", lerobot.config("diffusion", **options), state)
    assert expected in message(load_policy, folder, CPU)


def test_files_that_do_not_do_are_told(tmp_path):
    folder = lerobot.write(tmp_path / "x", lerobot.config("tdmpc"), later=True)
    step = json.loads((folder / "policy_preprocessor.json").read_text())
    for change, expected in (
        ({"registry_name": "crop_processor"}, "the step 'crop_processor' changes what the policy observes"),
        ({"config": {"rename_map": {"a": "b"}}}, "it renames a, which is not supported here"),
        ({"config": {"eps": 1e-5}}, "eps=1e-05; only 1e-8"),
    ):
        (folder / "policy_preprocessor.json").write_text(json.dumps({"steps": [{**step["steps"][1], **change}]}))
        assert expected in message(load_policy, folder, CPU)
    (folder / "policy_preprocessor.json").write_text(json.dumps(step))
    (folder / step["steps"][1]["state_file"]).unlink()
    assert "is missing, which holds the statistics" in message(load_policy, folder, CPU)
    (folder / "policy_preprocessor.json").unlink()
    text = message(load_policy, folder, CPU)
    assert "the statistics min of action are missing, without which its policy cannot act" in text
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is no file of weights" in message(load_policy, folder, CPU)
    (folder / "config.json").write_text("{")
    assert "config.json is not readable JSON" in message(load_policy, folder, CPU)
    (folder / "config.json").unlink()
    assert "config.json is missing beside model.safetensors" in message(locate.locate, "checkpoint", str(folder))


def test_statistics_that_are_not_finite_are_the_datasets_in_training_only(tmp_path, caplog):
    config = lerobot.config("diffusion")
    state = lerobot.state(config)
    state["normalize_inputs.buffer_observation_state.max"] = torch.full((2,), float("inf"))
    folder = lerobot.write(tmp_path / "x", config, state)
    assert "max of observation_state are not finite" in message(load_policy, folder, CPU)
    policy, _ = load_policy(lerobot.write(tmp_path / "y", config), CPU)
    spec = PretrainedCheckpoint(folder).spec()
    ones = {s: torch.ones(2) for s in ("min", "max")}
    image = {s: torch.ones(3, 1, 1) for s in ("mean", "std")}
    stats = {"observation.state": ones, "action": ones, "observation.image": image}
    normalizer = Normalizer(spec, policy.spec.normalization_mapping, stats)
    with caplog.at_level(logging.WARNING):
        PretrainedCheckpoint(folder).load_statistics(normalizer, strict=False)
    assert "max of observation_state are not finite; the dataset's are used there" in caplog.text
    assert torch.equal(normalizer.stats["observation_state"].max, torch.ones(2))
    assert torch.equal(normalizer.stats["action"].max, state["unnormalize_outputs.buffer_action.max"])


def test_a_tokenizer_that_is_trained_is_not_trained_again(tmp_path):
    config = lerobot.config("vqbet")
    state = lerobot.state(config)
    flag = "vqbet.action_head.vqvae_model.discretized"
    assert locate.policy_node(lerobot.write(tmp_path / "a", config, state))["n_vqvae_training_steps"] == 0
    state[flag] = torch.tensor(False)
    node = locate.policy_node(lerobot.write(tmp_path / "b", config, state))
    assert node["n_vqvae_training_steps"] == 20000


@pytest.mark.parametrize(("step", "left"), [(0, 20000), (10000, 10000), (30000, 0)])
def test_a_run_from_the_middle_of_the_tokenizers_training_trains_the_rest_of_it(tmp_path, step, left):
    folder = tmp_path / f"{step:08d}"
    folder.mkdir()
    (folder / "config.yaml").write_text("policy: {n_vqvae_training_steps: 20000}")
    assert locate.policy_node(folder)["n_vqvae_training_steps"] == left


def test_an_id_that_was_not_fetched_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = message(locate.locate, "policy.path", "nobody/nothing_here")
    assert "fetch it with: hf download nobody/nothing_here" in text
    assert "add download=true" in message(locate.locate, "checkpoint", "nobody/nothing_here")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_full_sizes(shared: Path, tmp_path: Path, kind: str) -> None:
    """Every name of the published list, at its full size."""
    config = {k: v for k, v in lerobot.config(kind).items() if k.endswith(("features", "mapping")) or k == "type"}
    names = shared / "golden/state_dict_keys" / f"{kind}_pusht.tsv"
    rows = [line.split("\t") for line in names.read_text().splitlines()]
    made = lerobot.state(config)
    dtypes = {"float32": torch.float32, "bool": torch.bool, "int64": torch.int64}
    state = {
        name: lerobot.by_rule(name, torch.empty(json.loads(shape), dtype=dtypes[dtype]))
        if dtype == "float32" and name not in made
        else made[name]
        for name, dtype, shape, *_ in rows
    }
    assert {name: list(v.shape) for name, v in state.items()} == {row[0]: json.loads(row[2]) for row in rows}
    folder = lerobot.write(tmp_path / "full", config, state)
    policy, normalizer = load_policy(folder, CPU)
    export(folder, tmp_path / "out", policy, normalizer, PretrainedCheckpoint(folder).spec())
    back = load_file(tmp_path / "out/model.safetensors")
    # Positions of ACT's VAE are computed, not learnt: ours are written, whatever the folder held.
    learnt = {name: value for name, value in state.items() if not name.endswith("pos_enc")}
    assert all(torch.equal(back[name], value) for name, value in learnt.items())
    save_file({}, tmp_path / "out/model.safetensors")  # a gigabyte back at once
