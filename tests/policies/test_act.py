"""ACT: what its constructor refuses, its loss, its actions, and the average of overlapping chunks."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from fakes.act import act
from fakes.policy import ACTION_DIM, batch, spec
from torch import Tensor

from robolearn.agent import Agent, TemporalEnsemble
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy, PolicySpec
from robolearn.policies.nn.transformer import image_sinusoids, sinusoids
from robolearn.types import Batch, Feature, Spec, Window

KEYPOINTS = spec(environment=True)


def observed(policy: ActPolicy, of: Spec) -> Batch:
    return {key: batch(policy, of)[key] for key in of.observation}


REFUSED = [
    ({"n_obs_steps": 2}, "policy.n_obs_steps"),
    ({"n_action_steps": 7}, "policy.n_action_steps"),
    ({"temporal_ensemble_coeff": 0.01}, "policy.temporal_ensemble_coeff"),
    ({"vision_backbone": "vgg11"}, "policy.vision_backbone"),
    ({"dim_model": 18}, "policy.dim_model"),
    ({"n_heads": 3}, "policy.dim_model"),
]


@pytest.mark.parametrize(("options", "key"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refuses(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        act(KEYPOINTS, **options)
    assert caught.value.key == key


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34"])
def test_refuses_a_dilation_that_the_backbone_has_not(backbone: str) -> None:
    message = r"policy.replace_final_stride_with_dilation=true: resnet\d+ cannot be dilated; .*resnet50"
    with pytest.raises(UserError, match=message):
        act(spec(cameras=1), vision_backbone=backbone, replace_final_stride_with_dilation=True)


def test_refuses_a_robot_that_sees_nothing() -> None:
    message = r"needs a camera or observation.environment_state; the dataset has observation.state only"
    with pytest.raises(UserError, match=message):
        act(spec())


def test_refuses_images_that_have_no_three_channels() -> None:
    of = Spec({"observation.images.depth": Feature("VISUAL", (1, 64, 64))}, Feature("ACTION", (2,)), 10.0)
    with pytest.raises(UserError, match=r"images of 3 channels, observation.images.depth has 1"):
        act(of)


def test_window_holds_one_frame_and_the_chunk() -> None:
    assert act(KEYPOINTS).spec.window == Window(observation=(0,), action=(0, 1, 2, 3, 4, 5))


UNEQUAL = Spec(
    {"observation.images.a": Feature("VISUAL", (3, 64, 64)), "observation.images.b": Feature("VISUAL", (3, 40, 72))},
    Feature("ACTION", (ACTION_DIM,)),
    10.0,
)
SPECS = {
    "one camera": spec(cameras=1),
    "two cameras": spec(cameras=2),
    "cameras of different shapes": UNEQUAL,
    "camera and environment state": spec(cameras=1, environment=True),
    "environment state": KEYPOINTS,
    "environment state without the robot's own": spec(state=False, environment=True),
    "camera without the robot's state": spec(cameras=1, state=False),
}


def learns_and_acts(policy: ActPolicy, of: Spec) -> None:
    loss, _ = policy.loss(batch(policy, of))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in policy.parameters())
    with torch.inference_mode():
        actions = policy.eval().act(observed(policy, of), {})[0]
    assert actions.shape == (3, 6, ACTION_DIM)
    assert actions.isfinite().all()


@pytest.mark.parametrize("of", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("use_vae", [True, False], ids=["vae", "no vae"])
def test_learns_and_acts_from(of: Spec, use_vae: bool) -> None:
    learns_and_acts(act(of, use_vae=use_vae), of)


@pytest.mark.parametrize(
    "options",
    [
        {"pre_norm": True},
        {"feedforward_activation": "gelu"},
        {"feedforward_activation": "glu"},
        {"n_encoder_layers": 2, "n_decoder_layers": 3, "n_vae_encoder_layers": 2},
        {"dropout": 0.5},
    ],
    ids=str,
)
def test_learns_and_acts_with(options: dict[str, Any]) -> None:
    learns_and_acts(act(KEYPOINTS, **options), KEYPOINTS)


def test_a_dilated_backbone_sees_twice_as_fine() -> None:
    of = spec(cameras=1, size=64)
    options: dict[str, Any] = {"vision_backbone": "resnet50"}
    with torch.device("meta"):
        coarse, fine = (act(of, **options, replace_final_stride_with_dilation=dilates) for dilates in (False, True))
        policies = {coarse: 4, fine: 16}
    for policy, tokens in policies.items():
        assert policy.encode_images(batch(policy, of, device="meta")).shape == (3, tokens, 16)
        policy.loss(batch(policy, of, device="meta"))


def test_every_camera_counts() -> None:
    of = spec(cameras=2)
    policy = act(of).eval()
    seen = observed(policy, of)
    chunk = policy.act(seen, {})[0]
    for camera in policy.cameras:
        assert not torch.equal(policy.act(seen | {camera: torch.zeros_like(seen[camera])}, {})[0], chunk)


def test_cameras_of_one_shape_are_encoded_as_each_alone() -> None:
    of = spec(cameras=2)
    policy = act(of).eval()
    seen = observed(policy, of)
    each = [policy.feature_map(seen[camera][:, -1]).flatten(2).transpose(1, 2) for camera in policy.cameras]
    torch.testing.assert_close(policy.encode_images(seen), torch.cat(each, dim=1))


def test_the_latent_encodes_the_actions_but_not_the_padding() -> None:
    policy = act(KEYPOINTS).eval()
    given = batch(policy, KEYPOINTS)
    assert policy.vae is not None
    state, actions, padding = given["observation.state"][:, -1], given["action"], given["action_is_pad"]
    mean, log_variance = policy.vae(state, actions, padding)
    assert mean.shape == log_variance.shape == (3, 5)
    inside, beyond = actions.clone(), actions.clone()
    inside[0, 0] += 1
    beyond[0, -1] += 1
    assert not torch.allclose(policy.vae(state, inside, padding)[0][0], mean[0])
    torch.testing.assert_close(policy.vae(state, beyond, padding)[0], mean)
    assert not torch.allclose(policy.vae(state + 1, actions, padding)[0], mean)


def parts_of_the_loss(**options: Any) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor, Tensor]:
    """The loss, its parts, errors (B, T, A), what is no padding (B, T, 1), and the divergence by torch."""
    policy = act(KEYPOINTS, **options)
    given = batch(policy, KEYPOINTS)
    torch.manual_seed(0)
    loss, metrics = policy.loss(given)
    assert policy.vae is not None
    mean, log_variance = policy.vae(given["observation.state"][:, -1], given["action"], given["action_is_pad"])
    deviation = (log_variance / 2).exp()
    torch.manual_seed(0)
    latent = mean + deviation * torch.randn_like(mean)
    errors = (policy.decode(given, latent) - given["action"]).abs()
    posterior = torch.distributions.Normal(mean, deviation)
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
    return loss, metrics, errors, ~given["action_is_pad"].unsqueeze(-1), divergence


def test_loss_is_the_mean_distance_without_padding_and_the_weighted_divergence() -> None:
    loss, metrics, errors, valid, divergence = parts_of_the_loss(kl_weight=3.0)
    distance = errors[valid.expand_as(errors)].mean()
    torch.testing.assert_close(loss, distance + 3 * divergence)
    torch.testing.assert_close(metrics["l1_loss"], distance.detach())
    torch.testing.assert_close(metrics["kld_loss"], divergence.detach())


def test_distance_of_the_reference_is_divided_by_all_actions() -> None:
    _, metrics, errors, valid, _ = parts_of_the_loss(average_over_padding=True)
    torch.testing.assert_close(metrics["l1_loss"], ((errors * valid).sum() / errors.numel()).detach())


def test_nothing_but_padding_is_no_distance() -> None:
    policy = act(KEYPOINTS, use_vae=False)
    given = batch(policy, KEYPOINTS)
    given["action_is_pad"][:] = True
    assert policy.loss(given)[0].item() == 0.0


def test_without_the_vae_the_loss_is_the_distance() -> None:
    policy = act(KEYPOINTS, use_vae=False)
    loss, metrics = policy.loss(batch(policy, KEYPOINTS))
    assert policy.vae is None
    assert list(metrics) == ["l1_loss"]
    torch.testing.assert_close(loss.detach(), metrics["l1_loss"])


def test_actions_are_those_of_the_latent_0() -> None:
    policy = act(KEYPOINTS).eval()
    seen = observed(policy, KEYPOINTS)
    chunk = policy.act(seen, {})[0]
    assert torch.equal(policy.act(seen, {})[0], chunk)
    assert torch.equal(policy.decode(seen, torch.zeros(3, 5)), chunk)
    assert not torch.equal(policy.decode(seen, torch.ones(3, 5)), chunk)


def test_the_backbone_is_a_group_of_its_own() -> None:
    policy = act(spec(cameras=1))
    groups = policy.param_groups()
    assert list(groups) == ["policy", "backbone"]
    assert sum(map(len, groups.values())) == len(list(policy.parameters()))
    assert policy.backbone is not None
    assert groups["backbone"][0] is policy.backbone[0].weight
    assert act(KEYPOINTS).param_groups()["backbone"] == []


def test_the_backbones_norms_learn_nothing() -> None:
    of = spec(cameras=1)
    policy = act(of)
    assert policy.backbone is not None
    before = {name: value.clone() for name, value in policy.backbone.named_buffers()}
    assert any(name.endswith("running_var") for name in before)
    policy.loss(batch(policy, of))
    assert all(torch.equal(value, before[name]) for name, value in policy.backbone.named_buffers())
    assert not any("bn" in name for name, _ in policy.backbone.named_parameters())


def test_pretrained_weights_come_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    resnet = torchvision.models.resnet18(weights=None)
    images = torch.rand(2, 3, 64, 64)
    for _ in range(3):
        resnet(images)  # moves the statistics of its norms
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    policy = act(spec(cameras=1), pretrained_backbone_weights=str(tmp_path / "resnet.pth"))
    policy.load_pretrained()
    body = torch.nn.Sequential(*list(resnet.eval().children())[:-2])
    assert policy.backbone is not None
    torch.testing.assert_close(policy.backbone(images), body(images))


def test_weights_that_are_not_there_are_named() -> None:
    policy = act(spec(cameras=1), pretrained_backbone_weights="/no/such.pth")
    with pytest.raises(UserError, match=r"/no/such.pth are not there.*policy.pretrained_backbone_weights=PATH or null"):
        policy.load_pretrained()


def test_sinusoids_are_those_of_the_paper() -> None:
    found = sinusoids(torch.arange(7), 8)
    for position in range(7):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert found[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert found[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_image_positions_tell_row_and_column() -> None:
    found = image_sinusoids(2, 3, 8).unflatten(0, (2, 3))
    assert len(found.flatten(0, 1).unique(dim=0)) == 6
    assert torch.equal(found[:, 0, :4], found[:, 2, :4])
    assert torch.equal(found[0, :, 4:], found[1, :, 4:])
    torch.testing.assert_close(found[-1, 0, :4], sinusoids(torch.tensor([2 * math.pi]), 4)[0])


# The average of overlapping chunks


def slow_ensemble(chunks: list[Tensor], coeff: float) -> list[Tensor]:
    """The weighted mean of every step's predictions, each gathered anew."""
    means = []
    for now in range(len(chunks)):
        predictions = [
            chunk[:, now - then] for then, chunk in enumerate(chunks[: now + 1]) if now - then < chunk.shape[1]
        ]
        weights = [math.exp(-coeff * i) for i in range(len(predictions))]
        means.append(sum(w * p for w, p in zip(weights, predictions, strict=True)) / sum(weights))
    return means


@pytest.mark.parametrize("coeff", [0.01, 0.0, 1.0, -0.5])
@pytest.mark.parametrize("length", [1, 4])
def test_ensemble_is_the_weighted_mean_of_all_predictions(coeff: float, length: int) -> None:
    torch.manual_seed(0)
    chunks = [torch.randn(3, length, 2) for _ in range(11)]
    ensemble = TemporalEnsemble(coeff)
    for found, expected in zip([ensemble(chunk) for chunk in chunks], slow_ensemble(chunks, coeff), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("coeff", "chosen"), [(1e4, "oldest"), (-1e4, "newest")])
def test_extreme_weights_choose_one_prediction(coeff: float, chosen: str) -> None:
    chunks = [torch.full((1, 3, 1), float(i)) for i in range(6)]
    ensemble = TemporalEnsemble(coeff)
    actions = [ensemble(chunk).item() for chunk in chunks]
    assert actions == ([0, 0, 0, 1, 2, 3] if chosen == "oldest" else [0, 1, 2, 3, 4, 5])


class Told(Policy):
    """Predicts chunks that were drawn before, one a call."""

    def __init__(self, chunks: list[Tensor], coeff: float) -> None:
        super().__init__()
        self.spec = PolicySpec(Window(), 1, {"ACTION": "MIN_MAX"}, temporal_ensemble_coeff=coeff)
        self.chunks = chunks
        self.calls = 0

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        raise NotImplementedError

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        self.calls += 1
        return self.chunks[self.calls - 1], {}


def test_the_agent_averages_at_every_step_and_forgets_at_a_reset() -> None:
    torch.manual_seed(1)
    chunks = [torch.randn(2, 3, ACTION_DIM) for _ in range(8)]
    policy = Told(chunks, 0.3)
    limits = {"min": torch.full((ACTION_DIM,), -10.0), "max": torch.full((ACTION_DIM,), 10.0)}
    normalizer = Normalizer(spec(), policy.spec.normalization_mapping, {"action": limits})
    agent = Agent(policy, normalizer, torch.device("cpu"))
    seen = {"observation.state": np.zeros((2, 3), np.float32)}
    found = [agent(seen) for _ in range(5)]
    agent.reset()
    found += [agent(seen) for _ in range(3)]
    assert policy.calls == 8
    expected = slow_ensemble(chunks[:5], 0.3) + slow_ensemble(chunks[5:], 0.3)
    for action, mean in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(action), normalizer.decode_action(mean))
