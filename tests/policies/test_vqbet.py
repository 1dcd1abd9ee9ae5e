"""VQ-BeT: what its constructor refuses, its two phases, its losses, and what it acts on."""

from typing import Any

import pytest
import torch
from fakes.policy import ACTION_DIM, batch, spec
from fakes.vqbet import CAMERA, SIZES, vqbet

from robolearn.errors import UserError
from robolearn.policies.nn.gpt import Gpt
from robolearn.policies.nn.residual_vq import Codebook, sample
from robolearn.policies.vqbet import VqbetPolicy
from robolearn.types import Batch, Spec, Window


def observed(policy: VqbetPolicy, of: Spec = CAMERA) -> Batch:
    return {key: batch(policy, of)[key] for key in of.observation}


REFUSED = [
    ({"n_action_steps": 4}, "policy.n_action_steps"),
    ({"gpt_n_head": 5}, "policy.gpt_hidden_dim"),
    ({"gpt_block_size": 9}, "policy.gpt_block_size"),
    ({"crop_shape": [80, 64]}, "policy.crop_shape"),
    ({"crop_shape": [64]}, "policy.crop_shape"),
    ({"vision_backbone": "vgg16"}, "policy.vision_backbone"),
    ({"pretrained_backbone_weights": "w.pth"}, "policy.pretrained_backbone_weights"),
]


@pytest.mark.parametrize(("options", "key"), REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_refuses(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        VqbetPolicy(CAMERA, **(SIZES | options))
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("of", "has"), [(spec(environment=True), "none"), (spec(cameras=2), "observation.images.0, observation.images.1")]
)
def test_needs_exactly_one_camera(of: Spec, has: str) -> None:
    with pytest.raises(UserError, match=f"policy=vqbet needs exactly one camera, the dataset has {has}"):
        VqbetPolicy(of, **SIZES)


def test_window() -> None:
    assert vqbet().spec.window == Window(observation=(-2, -1, 0), action=(-2, -1, 0, 1, 2, 3))


SPECS = {
    "state": CAMERA,
    "camera alone": spec(cameras=1, state=False),
    "everything": spec(cameras=1, environment=True),
}
OPTIONS = [
    {},
    {"sequentially_select": True},
    {"sample_codes_in_training": False},
    {"sequentially_select": True, "sample_codes_in_training": False},
    {"n_action_pred_token": 1},
    {"n_obs_steps": 1},
    {"action_chunk_size": 1},
    {"crop_shape": None},
    {"use_group_norm": False, "crop_per_sample": False},
    {"do_mask_loss_for_padding": False},
    {"n_action_steps": 2},
]


@pytest.mark.parametrize("of", SPECS.values(), ids=SPECS)
def test_learns_and_acts_from(of: Spec) -> None:
    learns_and_acts(vqbet(of), of)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_learns_and_acts_with(options: dict[str, Any]) -> None:
    learns_and_acts(vqbet(**options), CAMERA)


def learns_and_acts(policy: VqbetPolicy, of: Spec) -> None:
    for step in (0, 2):
        policy.before_step(step)
        policy.zero_grad(set_to_none=True)
        loss, _ = policy.loss(batch(policy, of) | {"task_index": torch.zeros(3)})
        loss.backward()
        assert loss.isfinite()
        learned = {name.startswith("tokenizer.") for name, p in policy.named_parameters() if p.grad is not None}
        assert learned == {step == 0}
        assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)
    with torch.inference_mode():
        actions = policy.eval().act(observed(policy, of), {})[0]
    assert actions.shape == (3, policy.chunk_size, ACTION_DIM)
    assert actions.isfinite().all()


def test_the_tokenizer_learns_first_and_then_stays() -> None:
    policy = vqbet()
    optimizer = torch.optim.Adam([p for group in policy.param_groups().values() for p in group], weight_decay=0.1)
    tokenized = []
    for step in range(4):
        policy.before_step(step)
        before = {name: value.clone() for name, value in policy.state_dict().items()}
        policy.loss(batch(policy, CAMERA))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
        tokenized.append({name.startswith("tokenizer.") for name in moved})
        assert ("tokenizer.codebooks.1.codes" in moved) == (step < 2)
    assert tokenized == [{True}, {True}, {False}, {False}]


def test_codebooks_follow_in_training_alone() -> None:
    policy = vqbet().eval()
    before = policy.tokenizer.codebooks[0].get_buffer("codes").clone()
    policy.loss(batch(policy, CAMERA))
    assert torch.equal(policy.tokenizer.codebooks[0].get_buffer("codes"), before)


def test_codes_become_the_means_of_what_they_stand_for() -> None:
    torch.manual_seed(0)
    codebook = Codebook(2, 3, decay=0.5)
    x, chosen = torch.rand(6, 3), torch.tensor([0, 0, 1, 1, 1, 1])
    for _ in range(60):
        codebook.ema_update(x, chosen, torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(codebook.codes[0], torch.stack([x[:2].mean(0), x[2:5].mean(0)]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [0, 2], ids=["tokenizer", "policy"])
@pytest.mark.parametrize("masked", [True, False])
def test_padding_does_not_count(step: int, masked: bool) -> None:
    policy = vqbet(step=step, do_mask_loss_for_padding=masked, dropout=0.0, crop_is_random=False)
    given = batch(policy, CAMERA)
    # Of a chunk that only ends in padding, the code may hang on it; so all of one sample is padding here.
    given["action_is_pad"][0] = True
    changed = given | {"action": given["action"].clone()}
    changed["action"][0] += 1
    losses = []
    for one in (given, changed):
        torch.manual_seed(0)  # codes are drawn
        losses.append(policy.eval().loss(one)[0])
    assert torch.allclose(losses[0], losses[1]) == masked


def test_computes_in_bfloat16() -> None:
    policy = vqbet()
    for step in (0, 2):
        policy.before_step(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = policy.loss(batch(policy, CAMERA))
            actions = policy.act(observed(policy), {})[0]
        loss.backward()
        assert loss.isfinite()
        assert actions.isfinite().all()


def test_no_position_sees_a_later_one() -> None:
    torch.manual_seed(0)
    gpt = Gpt(4, 4, 8, 8, 2, 2, 0.0)
    x = torch.rand(1, 6, 4)
    changed = x.clone()
    changed[:, 4] += 1
    same = (gpt(x) - gpt(changed)).abs().amax(-1)[0] < 1e-6
    assert same.tolist() == [True, True, True, True, False, False]


def test_learns_a_single_action() -> None:
    policy = vqbet(n_vqvae_training_steps=40, dropout=0.0)
    given = batch(policy, CAMERA)
    given["action"] = torch.full_like(given["action"], 0.4)
    optimizer = torch.optim.Adam([p for group in policy.param_groups().values() for p in group], lr=3e-3)
    for step in range(120):
        policy.before_step(step)
        policy.loss(given)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        actions = policy.eval().act(observed(policy), {})[0]
    assert (actions - 0.4).abs().max() < 0.1


@pytest.mark.parametrize("transposed", [False, True])
def test_codes_are_those_that_torch_would_draw(transposed: bool) -> None:
    odds = torch.rand(4, 6).softmax(-1)
    odds = odds.T.contiguous().T if transposed else odds
    torch.manual_seed(1)
    expected = torch.multinomial(odds, 1).squeeze(-1)
    torch.manual_seed(1)
    assert torch.equal(sample(odds), expected)
