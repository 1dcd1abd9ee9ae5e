"""Diffusion Policy: what its constructor refuses, its windows, its loss and its actions."""

from typing import Any

import pytest
import torch
from fakes.policy import ACTION_DIM, batch, diffusion, spec
from torch.nn import functional as F

from robolearn.errors import UserError
from robolearn.types import Feature, Spec

KEYPOINTS = spec(environment=True)

REFUSED = [
    ({"horizon": 9}, "policy.horizon"),
    ({"n_action_steps": 8}, "policy.n_action_steps"),
    ({"n_obs_steps": 6}, "policy.n_action_steps"),
    ({"down_dims": [8, 15]}, "policy.down_dims"),
    ({"n_obs_steps": 9}, "policy.n_obs_steps"),
    ({"final_n_groups": 3}, "policy.down_dims"),
    ({"kernel_size": 4}, "policy.kernel_size"),
    ({"num_inference_steps": 11}, "policy.num_inference_steps"),
    (
        {"beta_schedule": "linear", "beta_end": 2.0},
        "policy.beta_start",
    ),
    ({"beta_schedule": "linear", "beta_start": 0.5, "beta_end": 0.1}, "policy.beta_start"),
    ({"beta_schedule": "sigmoid", "noise_scheduler_type": "DDIM"}, "policy.beta_schedule"),
]


@pytest.mark.parametrize(("options", "key"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refuses(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        diffusion(KEYPOINTS, **options)
    assert caught.value.key == key


REFUSED_WITH_IMAGES = [
    ({"crop_shape": [64]}, "policy.crop_shape"),
    ({"crop_shape": [64, 73]}, "policy.crop_shape"),
    ({"pretrained_backbone_weights": "x.pth"}, "policy.pretrained_backbone_weights"),
    ({"vision_backbone": "vgg11"}, "policy.vision_backbone"),
]


@pytest.mark.parametrize(
    ("options", "key"), REFUSED_WITH_IMAGES, ids=[str(options) for options, _ in REFUSED_WITH_IMAGES]
)
def test_refuses_with_images(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        diffusion(spec(cameras=1), **options)
    assert caught.value.key == key


def test_refuses_a_robot_that_sees_nothing() -> None:
    message = r"needs a camera or observation.environment_state; the dataset has observation.state only"
    with pytest.raises(UserError, match=message):
        diffusion(spec())


def test_refuses_cameras_of_different_shapes() -> None:
    images = {
        "observation.images.a": Feature("VISUAL", (3, 32, 32)),
        "observation.images.b": Feature("VISUAL", (3, 32, 40)),
    }
    with pytest.raises(UserError, match=r"cameras of one shape, the dataset has observation.images.a \(3, 32, 32\), "):
        diffusion(Spec(images, Feature("ACTION", (2,)), 10.0))


def test_window_holds_the_observed_frames_and_the_trajectory_from_the_oldest() -> None:
    policy = diffusion(KEYPOINTS, n_obs_steps=3)
    assert policy.spec.window.observation == (-2, -1, 0)
    assert policy.spec.window.action == (-2, -1, 0, 1, 2, 3, 4, 5)


def test_dropped_frames_are_those_whose_executed_actions_would_be_padding() -> None:
    assert diffusion(KEYPOINTS, n_obs_steps=2, horizon=16, n_action_steps=8).spec.drop_n_last_frames == 7
    assert diffusion(KEYPOINTS, n_obs_steps=2, horizon=8, n_action_steps=7).spec.drop_n_last_frames == 0
    assert diffusion(KEYPOINTS, drop_n_last_frames=0).spec.drop_n_last_frames == 0


SPECS = {
    "one camera": spec(cameras=1),
    "two cameras": spec(cameras=2),
    "camera and environment state": spec(cameras=1, environment=True),
    "environment state": KEYPOINTS,
    "environment state without the robot's own": spec(state=False, environment=True),
    "camera without the robot's state": spec(cameras=1, state=False),
}


@pytest.mark.parametrize("of", SPECS.values(), ids=SPECS)
def test_learns_and_acts_from(of: Spec) -> None:
    policy = diffusion(of)
    given = batch(policy, of)
    loss, _ = policy.loss(given)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in policy.parameters())
    with torch.inference_mode():
        actions = policy.eval().act({key: given[key] for key in of.observation}, {})[0]
    assert actions.shape == (3, 7, ACTION_DIM)
    assert actions.isfinite().all()


def test_a_shared_encoder_is_one_and_separate_ones_are_as_many_as_cameras() -> None:
    of = spec(cameras=2)
    assert len(diffusion(of).encoders) == 1
    assert len(diffusion(of, use_separate_rgb_encoder_per_camera=True).encoders) == 2


def test_separate_encoders_see_their_own_camera_each() -> None:
    of = spec(cameras=2)
    policy = diffusion(of, use_separate_rgb_encoder_per_camera=True).eval()
    given = batch(policy, of)
    features = policy.encode_images(torch.stack([given[key] for key in policy.cameras], dim=2))
    per_camera = features.shape[-1] // 2
    changed = given | {policy.cameras[1]: torch.zeros_like(given[policy.cameras[1]])}
    other = policy.encode_images(torch.stack([changed[key] for key in policy.cameras], dim=2))
    assert torch.equal(features[..., :per_camera], other[..., :per_camera])
    assert not torch.equal(features[..., per_camera:], other[..., per_camera:])


def test_a_shared_encoder_gives_equal_features_for_equal_images() -> None:
    of = spec(cameras=2)
    policy = diffusion(of).eval()
    image = torch.rand(2, 2, 1, 3, 72, 72).expand(2, 2, 2, 3, 72, 72)
    first, second = policy.encode_images(image).chunk(2, dim=-1)
    torch.testing.assert_close(first, second)


def test_crops_at_random_in_training_and_in_the_middle_when_acting() -> None:
    policy = diffusion(spec(cameras=1))
    images = torch.rand(4, 2, 1, 3, 72, 72)
    assert not torch.equal(policy.encode_images(images), policy.encode_images(images))
    policy.eval()
    assert torch.equal(policy.encode_images(images), policy.encode_images(images))


def test_a_crop_that_is_not_random_is_the_same_in_training() -> None:
    policy = diffusion(spec(cameras=1), crop_is_random=False)
    images = torch.rand(4, 2, 1, 3, 72, 72)
    assert torch.equal(policy.encode_images(images), policy.encode_images(images))


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_loss_is_the_mean_squared_error_of_what_is_predicted(prediction: str) -> None:
    policy = diffusion(KEYPOINTS, prediction_type=prediction)
    given = batch(policy, KEYPOINTS)
    torch.manual_seed(0)
    loss, _ = policy.loss(given)
    torch.manual_seed(0)
    noise = torch.randn(given["action"].shape)
    steps = torch.randint(0, 10, (3,))
    noisy = policy.noise_scheduler.add_noise(given["action"], noise, steps)
    predicted = policy.unet(noisy, steps, policy.encode(given))
    torch.testing.assert_close(loss, F.mse_loss(predicted, noise if prediction == "epsilon" else given["action"]))


def masked_losses(**options: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss, each action's error (B, T, A), and which actions are valid (B, T, 1)."""
    policy = diffusion(KEYPOINTS, **options)
    given = batch(policy, KEYPOINTS)
    torch.manual_seed(0)
    loss, _ = policy.loss(given)
    torch.manual_seed(0)
    each = [number for number in range(3) for _ in range(policy.noise_samples)]
    actions = given["action"][each]
    noise = torch.randn(actions.shape)
    steps = torch.randint(0, 10, (len(each),))
    noisy = policy.noise_scheduler.add_noise(actions, noise, steps)
    errors = (policy.unet(noisy, steps, policy.encode(given)[each]) - noise) ** 2
    return loss, errors, ~given["action_is_pad"][each].unsqueeze(-1)


def test_masked_loss_is_the_mean_over_actions_that_are_not_padding() -> None:
    loss, errors, valid = masked_losses(do_mask_loss_for_padding=True)
    torch.testing.assert_close(loss, errors[valid.expand_as(errors)].mean())


def test_masked_loss_of_the_reference_is_divided_by_all_actions() -> None:
    loss, errors, valid = masked_losses(do_mask_loss_for_padding=True, average_over_padding=True)
    torch.testing.assert_close(loss, (errors * valid).sum() / errors.numel())


def test_one_encoding_serves_several_noises() -> None:
    loss, errors, valid = masked_losses(do_mask_loss_for_padding=True, noise_samples_per_observation=4)
    assert len(errors) == 12
    torch.testing.assert_close(loss, errors[valid.expand_as(errors)].mean())


def test_unmasked_loss_counts_padding() -> None:
    loss, errors, _ = masked_losses()
    torch.testing.assert_close(loss, errors.mean())


def test_masked_loss_of_nothing_but_padding_is_zero() -> None:
    policy = diffusion(KEYPOINTS, do_mask_loss_for_padding=True)
    given = batch(policy, KEYPOINTS)
    given["action_is_pad"][:] = True
    assert policy.loss(given)[0].item() == 0.0


def test_clipped_trajectories_stay_in_range() -> None:
    # One step of DDIM from pure noise gives the clean trajectory that it implies, clipped.
    options = {"noise_scheduler_type": "DDIM", "num_inference_steps": 1, "clip_sample_range": 0.5}
    policy = diffusion(KEYPOINTS, **options).eval()
    observation = {key: batch(policy, KEYPOINTS)[key] for key in KEYPOINTS.observation}
    assert policy.act(observation, {})[0].abs().max() <= 0.5


def test_acting_denoises_as_many_times_as_asked() -> None:
    for steps, expected in ((3, 3), (None, 10)):
        policy = diffusion(KEYPOINTS, num_inference_steps=steps).eval()
        calls = []
        policy.unet.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        policy.act({key: batch(policy, KEYPOINTS)[key] for key in KEYPOINTS.observation}, {})[0]
        assert len(calls) == expected
