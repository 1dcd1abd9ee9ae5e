"""pi0: its flow, its cache of keys and values, what it trains, and the options it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.pi0 import LANGUAGE, VISION, make_batch, make_policy, make_spec, write_tokenizer
from safetensors.torch import save_file

from robolearn.checkpoints.lerobot import weights
from robolearn.errors import UserError
from robolearn.policies.pi0 import Pi0Policy
from robolearn.policies.pi0.attention import ATTENTION
from robolearn.policies.pi0.gemma import KVCache
from robolearn.policies.pi0.pi0 import embed_times
from robolearn.types import Feature, Spec


def act(policy: Pi0Policy, batch: dict[str, torch.Tensor], seed: int = 5) -> torch.Tensor:
    torch.manual_seed(seed)
    with torch.inference_mode():
        return policy.eval().act({k: v for k, v in batch.items() if not k.startswith("action")}, {})[0]


def loss(policy: Pi0Policy, batch: dict[str, torch.Tensor], seed: int = 5) -> torch.Tensor:
    torch.manual_seed(seed)
    return policy.train().loss(batch)[0]


GPU = pytest.param("flex", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.parametrize("name", ["sdpa", GPU])
def test_attention_implementations_learn_equally(name: str) -> None:
    device = torch.device("cuda" if name == "flex" else "cpu")
    batch = {key: value.to(device) for key, value in make_batch().items()}
    eager, other = (make_policy(attention_implementation=each).to(device) for each in ("eager", name))
    expected, found = loss(eager, batch), loss(other, batch)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    for (key, a), b in zip(eager.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), key
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, atol=1e-4, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["sdpa", "flex"])
def test_attention_implementations_act_equally(name: str) -> None:
    eager, other = (make_policy(attention_implementation=each) for each in ("eager", name))
    torch.testing.assert_close(act(other, make_batch()), act(eager, make_batch()), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_flex_has_no_gradients_on_a_cpu() -> None:
    with pytest.raises(UserError, match=r"flex trains on a GPU only"):
        loss(make_policy(attention_implementation="flex"), make_batch())


@pytest.mark.parametrize("name", ["eager", "sdpa", "flex"])
def test_attention_follows_the_mask(name: str) -> None:
    torch.manual_seed(0)
    queries, keys, values = torch.randn(2, 3, 4, 16), torch.randn(2, 5, 2, 16), torch.randn(2, 5, 2, 16)
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[:, :, 1] = True
    attention = ATTENTION[name]  # type: ignore[index]
    attended = attention.attend(queries, keys, values, attention.prepare(mask))
    # Of each group of two heads, all see the one value that is not masked.
    torch.testing.assert_close(attended, values[:, 1:2].repeat_interleave(2, dim=2).flatten(2).expand(2, 3, 64))


def test_the_cache_equals_one_pass_over_all_tokens() -> None:
    # One pass over words and all, as the paper describes it: blocks that look at themselves and at those before.
    policy = make_policy().eval()
    gemma, expert = policy.paligemma.language, policy.paligemma.language
    tokens, more = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    valid = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    own = torch.ones(3, 3, dtype=torch.bool)
    in_two = expert(more, gemma.prefill(tokens, valid), own)

    mask = torch.zeros(2, 8, 8, dtype=torch.bool)
    mask[:, :, :5] = valid.unsqueeze(1)
    mask[:, 5:, 5:] = True
    nothing = [(torch.zeros(2, 0, 1, 16), torch.zeros(2, 0, 1, 16))] * 2
    for sample in range(2):  # positions leave no gap where words are padding
        kept = torch.cat([valid[sample], torch.ones(3, dtype=torch.bool)])
        together = torch.cat([tokens, more], dim=1)[sample : sample + 1, kept]
        memory = KVCache([(k[:1], v[:1]) for k, v in nothing], torch.zeros(1, 0, dtype=torch.bool))
        whole = gemma(together, memory, mask[sample][kept][:, kept])
        torch.testing.assert_close(in_two[sample], whole[0, -3:], atol=1e-5, rtol=1e-4)


def test_without_its_cache_it_acts_the_same() -> None:
    batch = make_batch()
    cached, anew = make_policy(), make_policy(use_cache=False)
    calls = []
    anew.paligemma.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(act(cached, batch), act(anew, batch))
    assert len(calls) == 3


def test_masked_tokens_change_nothing() -> None:
    policy, batch = make_policy(), make_batch()
    other = {**batch, "task_tokens": torch.where(batch["task_mask"], batch["task_tokens"], 7)}
    assert not torch.equal(other["task_tokens"], batch["task_tokens"])
    torch.testing.assert_close(act(policy, other), act(policy, batch))
    longer = {**batch, "task_tokens": torch.nn.functional.pad(batch["task_tokens"], (0, 3))}
    longer["task_mask"] = torch.nn.functional.pad(batch["task_mask"], (0, 3))
    torch.testing.assert_close(act(policy, longer), act(policy, batch), atol=1e-5, rtol=1e-4)


def test_the_instruction_changes_the_actions() -> None:
    policy, batch = make_policy(), make_batch()
    assert not torch.allclose(act(policy, {**batch, "task_tokens": batch["task_tokens"].flip(0)}), act(policy, batch))


def test_every_camera_counts() -> None:
    spec = make_spec(cameras=3)
    policy, batch = make_policy(spec), make_batch(spec)
    chunk = act(policy, batch)
    assert chunk.shape == (2, 4, 3)
    for key in policy.cameras:
        assert not torch.allclose(act(policy, {**batch, key: 1 - batch[key]}), chunk, atol=1e-4)


def test_cameras_may_differ_in_shape() -> None:
    spec = Spec(
        {
            "observation.images.a": Feature("VISUAL", (3, 20, 50)),
            "observation.images.b": Feature("VISUAL", (3, 64, 28)),
            "observation.state": Feature("STATE", (3,)),
        },
        Feature("ACTION", (3,)),
        10.0,
    )
    assert act(make_policy(spec), make_batch(spec)).isfinite().all()


def test_empty_cameras_change_nothing() -> None:
    batch = make_batch()
    torch.testing.assert_close(act(make_policy(empty_cameras=2), batch), act(make_policy(), batch))


def test_works_with_words_and_surroundings_alone() -> None:
    spec = Spec({"observation.environment_state": Feature("ENV", (5,))}, Feature("ACTION", (2,)), 10.0)
    policy, batch = make_policy(spec), make_batch(spec)
    chunk = act(policy, batch)
    changed = {**batch, "observation.environment_state": batch["observation.environment_state"] + 1}
    assert not torch.allclose(act(policy, changed), chunk)


def test_works_with_a_camera_alone() -> None:
    spec = Spec({"observation.image": Feature("VISUAL", (3, 28, 28))}, Feature("ACTION", (2,)), 10.0)
    assert act(make_policy(spec), make_batch(spec)).shape == (2, 4, 2)


def test_padded_actions_do_not_count() -> None:
    policy, reference = make_policy(), make_policy(do_mask_loss_for_padding=False)
    batch = make_batch()
    batch["action_is_pad"][:, 2:] = True
    # They are seen through attention, as noise at any time is; at time 1 there is noise alone.
    for each in (policy, reference):
        each.sample_times = lambda actions: torch.ones(len(actions))  # type: ignore[method-assign]
    other = {**batch, "action": torch.where(batch["action_is_pad"].unsqueeze(-1), 9.0, batch["action"])}
    torch.testing.assert_close(loss(policy, other), loss(policy, batch))
    assert not torch.allclose(loss(reference, other), loss(reference, batch))
    batch["action_is_pad"][:] = True
    assert loss(policy, batch) == 0


def test_zeros_that_fill_actions_up_are_not_learned() -> None:
    policy, reference, batch = make_policy(), make_policy(loss_over_padded_dims=True), make_batch()
    for each in (policy, reference):
        loss(each, batch).backward()
    grad, other = policy.action_out.weight.grad, reference.action_out.weight.grad
    assert grad is not None
    assert other is not None
    assert (grad[3:] == 0).all()
    assert (other[3:] != 0).all()
    assert policy.sample_noise(torch.zeros(2, 4, 16))[..., 3:].eq(0).all()
    assert reference.sample_noise(torch.zeros(2, 4, 16))[..., 3:].ne(0).all()


def test_times_are_embedded_in_double_precision() -> None:
    time, periods = torch.tensor(0.7319), [4e-3 * 1000 ** (i / 3) for i in range(4)]
    angles = [2 * math.pi * time.item() / period for period in periods]
    expected = [f(angle) for f in (math.sin, math.cos) for angle in angles]
    # In single precision the first angle, of 1,150 radians, is off by 1e-4.
    assert embed_times(time[None], 8)[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_times_are_drawn_as_the_paper_says() -> None:
    torch.manual_seed(0)
    many = torch.zeros(200_000, 1)
    times = (make_policy().sample_times(many) - 0.001) / 0.999
    # Mean and variance of Beta(1.5, 1)
    assert times.mean().item() == pytest.approx(1.5 / 2.5, abs=2e-3)
    assert times.var().item() == pytest.approx(1.5 / (2.5**2 * 3.5), abs=1e-3)
    reference = make_policy(time_sampling="two_powers").sample_times(many)
    assert abs(reference.mean().item() - 0.6) > 0.02


def test_flow_leads_from_noise_to_actions() -> None:
    # A flow known in closed form: from any noise straight to one chunk.
    policy, batch = make_policy(num_steps=5), make_batch()
    goal = torch.nn.functional.pad(torch.randn(2, 4, 3), (0, 13))
    policy.flow = lambda noisy, times, state, memory: (noisy - goal) / times[:, None, None]  # type: ignore
    torch.testing.assert_close(act(policy, batch), goal[..., :3])


def test_only_the_expert_is_trained() -> None:
    policy = make_policy(train_expert_only=True)
    loss(policy, make_batch()).backward()
    for name, parameter in policy.named_parameters():
        read = not name.startswith("paligemma.")
        assert (parameter.grad is not None) == read, name
    assert sum(p.numel() for p in policy.param_groups()["policy"]) == sum(
        p.numel() for n, p in policy.named_parameters() if not n.startswith("paligemma.")
    )


@pytest.mark.parametrize("frozen", [True, False])
def test_vision_is_frozen_by_its_key(frozen: bool) -> None:
    policy = make_policy(freeze_vision_encoder=frozen, train_state_proj=False)
    loss(policy, make_batch()).backward()
    assert policy.paligemma.projector.weight.grad is not None
    assert policy.state_proj.weight.grad is None
    for parameter in policy.paligemma.vision.parameters():
        assert (parameter.grad is None) == frozen


@pytest.mark.parametrize("expert_only", [True, False])
def test_checkpointing_changes_no_gradient(expert_only: bool) -> None:
    options: dict[str, Any] = {"freeze_vision_encoder": expert_only, "train_expert_only": expert_only}
    plain, saving = make_policy(**options), make_policy(**options, gradient_checkpointing=True)
    for policy in (plain, saving):
        loss(policy, make_batch()).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name)


def test_weights_are_bfloat16_but_for_what_is_around_them() -> None:
    policy = make_policy(dtype="bfloat16")
    kinds = {name: parameter.dtype for name, parameter in policy.named_parameters()}
    outside = ("state_proj.", "action_", "expert.norm.")
    assert {kinds[name] for name in kinds if not name.startswith(outside)} == {torch.bfloat16}
    assert {kinds[name] for name in kinds if name.startswith(outside)} == {torch.float32}
    assert torch.get_default_dtype() == torch.float32
    value = loss(policy, make_batch())
    value.backward()
    assert value.dtype == torch.float32
    assert act(policy, make_batch()).dtype == torch.float32


def test_tasks_become_tokens(tmp_path: Path) -> None:
    policy = make_policy(tokenizer=str(write_tokenizer(tmp_path / "tokenizer")))
    encoded = policy.encode_tasks(["lift", "push it"])
    tokens, valid = encoded["task_tokens"], encoded["task_mask"]
    # A start token, the bytes, and the line break that ends each prompt.
    assert valid.sum(-1).tolist() == [1 + 4 + 1, 1 + 7 + 1]
    assert tokens[:, 0].tolist() == [2, 2]
    assert tokens[0, 5] == tokens[1, 8] != tokens[0, 4]
    assert torch.equal(policy.encode_tasks(["lift\n"])["task_tokens"], tokens[:1, :6])


def test_tokens_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    policy = make_policy(tokenizer=str(write_tokenizer(tmp_path / "tokenizer")), tokenizer_max_length=8)
    with pytest.raises(UserError, match=r"'push the block' has 16 tokens, more than policy.tokenizer_max_length=8"):
        policy.encode_tasks(["lift", "push the block"])


def test_words_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    language = {**LANGUAGE, "vocab_size": 40}
    policy = make_policy(tokenizer=str(write_tokenizer(tmp_path / "tokenizer")), language=language)
    with pytest.raises(UserError, match=r"tokens beyond policy.language.vocab_size=40"):
        policy.encode_tasks(["lift"])


def test_a_tokenizer_that_is_not_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"no such folder, nor is it a hub id .*policy.download=true"):
        make_policy(tokenizer="nobody/nothing").encode_tasks(["lift"])
    with pytest.raises(UserError, match=r"holds no tokenizer"):
        make_policy(tokenizer=str(tmp_path)).encode_tasks(["lift"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"policy.tokenizer=.* can't be read"):
        make_policy(tokenizer=str(tmp_path)).encode_tasks(["lift"])


ODD = make_spec(dim=17)
DEPTH = Spec({"observation.image": Feature("VISUAL", (1, 28, 28))}, Feature("ACTION", (2,)), 10.0)
REFUSED: list[tuple[Spec | None, dict[str, Any], str]] = [
    (None, {"n_obs_steps": 2}, "policy.n_obs_steps"),
    (None, {"n_action_steps": 5}, "policy.n_action_steps"),
    (None, {"train_expert_only": True, "freeze_vision_encoder": False}, "policy.train_expert_only"),
    (ODD, {"max_action_dim": 32}, "policy.max_state_dim"),
    (ODD, {"max_state_dim": 32}, "policy.max_action_dim"),
    (DEPTH, {}, "observation.image"),
    (Spec({}, Feature("ACTION", (2,)), 10.0), {}, "policy"),
    (None, {"resize_imgs_with_padding": [28, 14]}, "policy.resize_imgs_with_padding"),
    (None, {"resize_imgs_with_padding": None}, "policy.resize_imgs_with_padding"),
    (None, {"normalization_mapping": {"VISUAL": "MEAN_STD"}}, "policy.normalization_mapping.VISUAL"),
    (None, {"adapt_to_pi_aloha": True}, "policy.adapt_to_pi_aloha"),
    (None, {"use_delta_joint_actions_aloha": True}, "policy.use_delta_joint_actions_aloha"),
    (None, {"expert": {"head_dim": 8}}, "policy.expert.head_dim"),
    (None, {"expert": {"hidden_size": 8}}, "policy.expert.hidden_size"),
    (None, {"vision": {**VISION, "layers": 3}}, "policy.vision.layers"),
    (None, {"vision": {**VISION, "num_attention_heads": 5}}, "policy.vision.hidden_size"),
]


@pytest.mark.parametrize(("spec", "options", "key"), REFUSED, ids=[next(iter(o), "spec") for _, o, _ in REFUSED])
def test_refuses_what_contradicts(spec: Spec | None, options: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError) as caught:
        make_policy(spec, **options)
    assert caught.value.key == key
    assert "\n" not in str(caught.value)


def test_the_published_sizes_are_built_without_memory() -> None:
    with torch.device("meta"):
        policy = Pi0Policy(make_spec(dim=14, cameras=1, size=(480, 640)))
    count = sum(p.numel() for p in policy.parameters())
    assert count == pytest.approx(3.24e9, rel=0.01)  # PaliGemma's 2.92 and the expert's 0.31
    assert math.isclose(policy.paligemma.words.weight.numel(), 257152 * 2048)


@pytest.mark.parametrize("robot", ["aloha", "pusht", "pusht_keypoints", "xarm"])
def test_every_published_parameter_has_its_place(shared: Path, robot: str) -> None:
    rows = [line.split("\t") for line in (shared / f"golden/state_dict_keys/pi0_{robot}.tsv").read_text().splitlines()]
    published = {row[0]: tuple(json.loads(row[2])) for row in rows if row[2].startswith("[")}
    assert len(published) > 700
    with torch.device("meta"):
        policy = Pi0Policy(make_spec(dim=14, size=(480, 640)))
    ours = {name: tuple(parameter.shape) for name, parameter in policy.named_parameters()}
    places = {name: weights.rename("pi0")(name) for name in published}
    found = {place[1]: published[name] for name, place in places.items() if place and place[0] == "policy"}
    assert found == ours
    # Nothing uses the expert's output layer; all else is kept.
    assert [name for name, place in places.items() if place is None] == [
        "model.paligemma_with_expert.gemma_expert.lm_head.weight"
    ]


def write_paligemma(folder: Path, prefix: str, tower: str, words: str, **changed: torch.Tensor) -> Pi0Policy:
    """Save the weights of a tiny PaliGemma as some version of transformers names them; returns their policy."""
    policy = make_policy(seed=3)
    names = {"vision.": f"{prefix}{tower}", "projector.": f"{prefix}multi_modal_projector.linear.", "words.": words}
    names["language."] = f"{prefix}language_model." if prefix else "language_model.model."
    tensors = {}
    for name, value in policy.paligemma.state_dict().items():
        part = next(part for part in names if name.startswith(part))
        tensors[names[part] + name.removeprefix(part)] = value.clone()
    folder.mkdir()
    halves = dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2]) | changed
    for number, half in enumerate(halves):
        save_file(half, folder / f"model-{number}.safetensors")
    return policy


LAYOUTS = {
    "transformers 4": ("", "vision_tower.vision_model.", "language_model.model.embed_tokens."),
    "transformers 5": ("model.", "vision_tower.", "lm_head."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_starts_from_weights_of_paligemma(tmp_path: Path, layout: str) -> None:
    source = write_paligemma(tmp_path / "weights", *LAYOUTS[layout])
    policy = make_policy(seed=4, pretrained_paligemma=str(tmp_path / "weights"))
    policy.load_pretrained()
    for name, value in policy.paligemma.state_dict().items():
        assert torch.equal(value, source.paligemma.state_dict()[name]), name
    assert not torch.equal(policy.action_in.weight, source.action_in.weight)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refusal(**options: Any) -> str:
        with pytest.raises(UserError) as caught:
            make_policy(**options).load_pretrained()
        return str(caught.value)

    write_paligemma(tmp_path / "good", *LAYOUTS["transformers 5"])
    other = {"language": {**LANGUAGE, "vocab_size": 301}, "pretrained_paligemma": str(tmp_path / "good")}
    assert "see policy.vision and policy.language" in refusal(**other)
    write_paligemma(tmp_path / "more", *LAYOUTS["transformers 5"], odd=torch.zeros(1))
    assert "a parameter odd that policy=pi0 does not know" in refusal(pretrained_paligemma=str(tmp_path / "more"))
    (tmp_path / "good/model-1.safetensors").unlink()
    assert "lacks" in refusal(pretrained_paligemma=str(tmp_path / "good"))
    (tmp_path / "good/model-0.safetensors").write_bytes(b"damaged")
    assert "is damaged" in refusal(pretrained_paligemma=str(tmp_path / "good"))
