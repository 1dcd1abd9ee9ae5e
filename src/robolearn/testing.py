"""The contract of a policy as a test, for policies of this project and for those of its users.

Call `check_policy` from a test; its AssertionError names the rule of `robolearn.policies.base` that is broken.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from robolearn.policies.base import Policy, PolicySpec
from robolearn.types import Batch, Spec

BATCH_SIZE = 3
T = TypeVar("T")


def check_policy(
    make_policy: Callable[..., Policy],
    spec: Spec,
    *,
    masks_padding: bool = True,
    unused_parameters: Sequence[str] = (),
    tasks: Sequence[str] = ("push the block", "lift the cube", "open the drawer"),
) -> None:
    """Check that a policy keeps the contract of `robolearn.policies.base.Policy`.

    Args:
        make_policy: The policy's class, or a partial of it; called as ``make_policy(spec=spec)``, more than once.
        spec: The features of a robot that the policy accepts; call once for each combination of features it supports.
        masks_padding: Actions marked in ``action_is_pad`` must not change the loss.
        unused_parameters: Prefixes of the names of trainable parameters that get no gradient.
        tasks: Instructions for a policy that uses language, one for each sample.

    Raises:
        AssertionError: A rule is broken; the message names it.
    """
    policy = _made(make_policy, spec)
    check_spec(policy.spec)
    trained: set[str] = set()
    for step in sorted({0, policy.spec.min_offline_steps}):
        policy.before_step(step)
        batch = make_batch(policy, spec, tasks)
        check_loss(policy, batch, unused_parameters)
        if masks_padding:
            check_padding(policy, batch)
        if policy.spec.capturable:
            check_capturable(policy, batch)
        trained |= {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    check_param_groups(policy, trained)
    observation = make_observation(policy, spec, tasks)
    check_actions(policy, spec, observation)
    check_state_dict(make_policy, policy, spec, observation)


def make_batch(policy: Policy, spec: Spec, tasks: Sequence[str] = ()) -> Batch:
    """A normalised training batch of noise over the policy's window.

    Args:
        policy: Gives the window and encodes the tasks.
        spec: Its features.
        tasks: One for each sample, for a policy that uses language.

    Returns:
        Observations (B, T, ...), images in [0, 1], and ``action`` (B, T, A), rewards (B, T) where the window has some,
        each with ``<key>_is_pad`` (B, T), in which the first sample ends in padding; the encoded tasks (B, ...).
    """
    window, generator = policy.spec.window, torch.Generator().manual_seed(5)
    batch = {
        key: torch.rand((BATCH_SIZE, len(window.observation), *feature.shape), generator=generator)
        for key, feature in spec.observation.items()
    }
    batch["action"] = torch.rand((BATCH_SIZE, len(window.action), *spec.action.shape), generator=generator) * 2 - 1
    if window.reward:
        batch["next.reward"] = torch.rand((BATCH_SIZE, len(window.reward)), generator=generator)
    for key, value in list(batch.items()):
        padding = torch.zeros(value.shape[:2], dtype=torch.bool)
        padding[0, value.shape[1] // 2 + 1 :] = True
        batch[f"{key}_is_pad"] = padding
    return batch | _encoded(policy, tasks)


def make_observation(policy: Policy, spec: Spec, tasks: Sequence[str] = ()) -> Batch:
    """A normalised observation of noise, as the agent gives it: the frames of the window that are not in the future."""
    frames = sum(offset <= 0 for offset in policy.spec.window.observation)
    batch = make_batch(policy, spec)
    return {key: batch[key][:, :frames] for key in spec.observation} | _encoded(policy, tasks)


def check_spec(spec: PolicySpec) -> None:
    """The constants are complete, frozen and agree with each other."""
    assert isinstance(spec, PolicySpec), f"policy.spec is a {type(spec).__name__}, not a PolicySpec"
    assert 0 in spec.window.observation, "spec.window.observation must hold 0, the newest frame"
    assert spec.n_action_steps >= 1, "spec.n_action_steps must be at least 1"
    future = sum(offset >= 0 for offset in spec.window.action)
    assert 0 <= spec.drop_n_last_frames < max(future, 1), (
        f"spec.drop_n_last_frames={spec.drop_n_last_frames} leaves out frames whose action window of {future} actions "
        "holds no padding"
    )
    assert spec.temporal_ensemble_coeff is None or spec.n_action_steps == 1, (
        "spec.temporal_ensemble_coeff needs spec.n_action_steps=1"
    )
    assert bool(spec.window.reward) or not spec.needs_reward, "spec.needs_reward needs spec.window.reward"
    try:
        spec.n_action_steps = spec.n_action_steps  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError("policy.spec can be changed; make the dataclass frozen")


def check_loss(policy: Policy, batch: Batch, unused_parameters: Sequence[str] = ()) -> None:
    """The loss is a finite scalar with gradients, metrics are detached scalars, and a seed decides them."""
    policy, again = copy.deepcopy(policy).train(), copy.deepcopy(policy).train()
    with _unchanged(batch, "loss changes its caller's batch"):
        loss, metrics = _seeded(lambda: policy.loss(batch))
    assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}, not ()"
    assert loss.isfinite(), f"the loss of random data is {loss.item()}"
    for name, value in metrics.items():
        assert isinstance(value, Tensor), f"the metric {name} is a {type(value).__name__}, not a tensor"
        assert not value.requires_grad, f"the metric {name} is not detached"
        assert value.numel() == 1, f"the metric {name} is no scalar"
    policy.zero_grad(set_to_none=True)
    loss.backward()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad and not name.startswith(tuple(unused_parameters)):
            assert parameter.grad is not None, f"the trainable parameter {name} gets no gradient from the loss"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
    other, _ = _seeded(lambda: again.loss(batch))
    assert torch.equal(loss, other), "the loss differs from call to call under one torch.manual_seed"


def check_padding(policy: Policy, batch: Batch) -> None:
    """A sample whose actions are all padding has the same loss whatever these are."""
    batch = batch | {"action_is_pad": batch["action_is_pad"].clone(), "action": batch["action"].clone()}
    batch["action_is_pad"][0] = True
    before, _ = _seeded(lambda: copy.deepcopy(policy).train().loss(batch))
    batch["action"][0] += 1
    after, _ = _seeded(lambda: copy.deepcopy(policy).train().loss(batch))
    torch.testing.assert_close(before, after, msg="actions marked in action_is_pad change the loss")


def check_capturable(policy: Policy, batch: Batch) -> None:
    """Neither loss, nor after_step, nor act reads the value of a tensor on the device.

    Tensors of PyTorch's meta device have shapes and no values, so that reading one raises.
    """
    meta = copy.deepcopy(policy).to("meta").train()
    given = {key: value.to("meta") for key, value in batch.items()}
    frames = sum(offset <= 0 for offset in policy.spec.window.observation)
    observation = {
        key: value[:, :frames] if key.startswith("observation.") else value
        for key, value in given.items()
        if not key.endswith("_is_pad") and key not in ("action", "next.reward")
    }
    name = "loss"
    try:
        meta.loss(given)[0].backward()
        name = "after_step"
        meta.after_step()
        name = "act"
        with torch.inference_mode():
            _, state = meta.eval().act(observation, {})
            meta.act(observation, state)
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(
            f"{name} may read a tensor's value on the host ({error}), which a CUDA graph cannot hold; keep it on the "
            "device, or set capturable=False in the PolicySpec"
        ) from error


def check_param_groups(policy: Policy, trained: set[str]) -> None:
    """The groups hold every parameter that any stage trains, once, and no other.

    Args:
        policy: The policy.
        trained: Names of the parameters that are trainable in some stage.
    """
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    grouped = [names.get(id(p), "a tensor that is no parameter") for g in policy.param_groups().values() for p in g]
    assert len(grouped) == len(set(grouped)), f"param_groups holds {_repeated(grouped)} more than once"
    missing, others = sorted(trained - set(grouped)), sorted(set(grouped) - trained)
    assert not missing, f"param_groups lacks the trainable parameter {missing[0]}"
    assert not others, f"param_groups holds {others[0]}, which is not trainable"


def check_actions(policy: Policy, spec: Spec, observation: Batch) -> None:
    """Chunks have their shape; seed, observation and state alone decide them; nothing else changes."""
    policy = copy.deepcopy(policy).eval()
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    with _unchanged(observation, "act changes its caller's observation"):
        chunk, state = _act(policy, observation, {})
    _check_chunk(policy.spec, spec, chunk, "act")
    for name, value in state.items():
        assert value.is_floating_point(), f"the state's {name} is no float tensor"
    with _unchanged(state, "act changes the state it was given"):
        later, next_state = _act(policy, observation, state)
    _check_chunk(policy.spec, spec, later, "act with a state")
    shapes = {name: value.shape for name, value in state.items()}
    assert {name: value.shape for name, value in next_state.items()} == shapes, "the state changes its shape or names"
    _check_chunk(policy.spec, spec, _act(policy, observation, {}, explore=True)[0], "act(explore=True)")

    other = {key: value.clone() for key, value in observation.items()}
    for key in spec.observation:
        other[key][-1] = 1 - other[key][-1]
    changed, _ = _act(policy, other, {})
    repeated, _ = _act(policy, observation, {})
    assert torch.equal(repeated, chunk), (
        "with the state of a fresh episode and one torch.manual_seed, act differs from call to call"
    )
    torch.testing.assert_close(
        changed[:-1], chunk[:-1], atol=1e-4, rtol=1e-4, msg="one sample's observation changes another's actions"
    )
    for name, value in policy.state_dict().items():
        assert torch.equal(value, weights[name]), f"act changes {name}"


def check_state_dict(make_policy: Callable[..., Policy], policy: Policy, spec: Spec, observation: Batch) -> None:
    """Another policy with the same state dict acts equally."""
    other = _made(make_policy, spec, seed=1)
    other.load_state_dict(policy.state_dict())
    expected, found = (_act(copy.deepcopy(each).eval(), observation, {})[0] for each in (policy, other))
    assert torch.equal(expected, found), "a policy with the same state_dict acts differently; make its tensors buffers"


def _made(make_policy: Callable[..., Policy], spec: Spec, seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    policy = make_policy(spec=spec)
    assert isinstance(policy, Policy), f"{type(policy).__name__} is no robolearn.policies.base.Policy"
    return policy


def _encoded(policy: Policy, tasks: Sequence[str]) -> Batch:
    if not tasks or not policy.spec.uses_language:
        return {}
    encoded = policy.encode_tasks([tasks[i % len(tasks)] for i in range(BATCH_SIZE)])
    assert encoded, "spec.uses_language is true, but encode_tasks gives nothing"
    for key, value in encoded.items():
        assert len(value) == BATCH_SIZE, f"encode_tasks gives {len(value)} rows of {key} for {BATCH_SIZE} tasks"
    return encoded


def _seeded(call: Callable[[], T]) -> T:
    torch.manual_seed(7)
    return call()


@torch.inference_mode()
def _act(policy: Policy, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
    return _seeded(lambda: policy.act(observation, state, explore))


def _check_chunk(policy: PolicySpec, spec: Spec, chunk: Tensor, name: str) -> None:
    size = spec.action.shape[0]
    assert chunk.ndim == 3 and chunk.shape[::2] == (BATCH_SIZE, size) and chunk.shape[1] >= policy.n_action_steps, (  # noqa: PT018
        f"{name} gives {tuple(chunk.shape)}, not (B, T, A) with B={BATCH_SIZE}, T >= n_action_steps="
        f"{policy.n_action_steps} and A={size}"
    )
    assert chunk.isfinite().all(), f"{name} gives actions that are not finite"


@contextmanager
def _unchanged(batch: Batch, message: str) -> Iterator[None]:
    before = {key: (value, value.clone()) for key, value in batch.items()}
    yield
    same = batch.keys() == before.keys()
    assert same and all(batch[k] is value and torch.equal(value, copied) for k, (value, copied) in before.items()), (  # noqa: PT018
        message
    )


def _repeated(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
