"""Processes that train together: each policy's loss and gradients on shares of a batch, against those of the whole."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fakes.pi0 import make_batch, make_policy
from fakes.policy import batch, diffusion, spec
from fakes.tdmpc import CHUNK, reward_batch, tdmpc
from fakes.vqbet import vqbet
from robolearn import rng
from robolearn.cli import train as cli
from robolearn.distributed.world import World
from robolearn.policies.act import ActPolicy
from robolearn.policies.base import Policy
from robolearn.training.update import Update
from robolearn.types import Batch

SIZE = 4
CPU = torch.device("cpu")


def act() -> tuple[Policy, Batch]:
    of = spec(cameras=1, size=64)
    torch.manual_seed(0)
    sizes = {"chunk_size": 6, "n_action_steps": 6, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16}
    policy = ActPolicy(of, latent_dim=4, dropout=0.0, pretrained_backbone_weights=None, **sizes)
    return policy, batch(policy, of, SIZE)


def diffusion_of_images() -> tuple[Policy, Batch]:
    of = spec(cameras=2)
    torch.manual_seed(0)
    policy = diffusion(of, do_mask_loss_for_padding=True)
    return policy, batch(policy, of, SIZE)


def two_phases() -> tuple[Policy, Batch]:
    policy = vqbet(dropout=0.0, n_vqvae_training_steps=1)
    return policy, batch(policy, spec(cameras=1), SIZE)


def world_model() -> tuple[Policy, Batch]:
    of = spec(cameras=1, size=64)
    policy = tdmpc(of, **CHUNK, q_ensemble_size=5)
    one, other = reward_batch(policy, of), reward_batch(policy, of)
    return policy, {key: torch.cat([value, other[key][:1]]) for key, value in one.items()}


def pi0() -> tuple[Policy, Batch]:
    return make_policy(), make_batch(size=SIZE)


MADE: dict[str, Callable[[], tuple[Policy, Batch]]] = {
    made.__name__: made for made in (act, diffusion_of_images, two_phases, world_model, pi0)
}


def learnt(name: str, world: World) -> dict[str, torch.Tensor]:
    """Gradients, losses and buffers of two updates: of the processes' shards, or of whole batches in a world of one."""
    policy, whole = MADE[name]()
    policy.train()
    torch.manual_seed(7)
    if world.size > 1:
        rng.enable_sharding(world.rank, world.size, CPU)
    own = {key: value.chunk(world.size)[world.rank] for key, value in whole.items()}
    averaging = world.wrap_ddp(_Loss(policy))
    result = {}
    for step in range(2):
        policy.before_step(step)
        policy.zero_grad()
        loss, _ = averaging(own)
        loss.backward()
        result[f"loss {step}"] = world.all_reduce_mean(loss.detach())
        result |= {f"{key} {step}": p.grad for key, p in policy.named_parameters() if p.grad is not None}
    result |= {key: value.clone() for key, value in policy.named_buffers() if value.is_floating_point()}
    rng.disable_sharding()
    return result


class _Loss(torch.nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, given: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.policy.loss(given)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def together(size: int, logs: Path, *arguments: str, seconds: float = 200) -> list[tuple[int, str]]:
    """This module as `size` processes that train together; the status and the words of each."""
    tests = str(Path(__file__).resolve().parents[1])
    named = {"WORLD_SIZE": size, "MASTER_PORT": free_port(), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": 1}
    named |= {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    started = []
    for rank in range(size):
        variables = {key: str(value) for key, value in (named | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        with (logs / f"{rank}.log").open("wb") as log:
            command = [sys.executable, "-m", "fakes.world", *arguments]
            started.append(subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log))
    try:
        return [(one.wait(seconds), (logs / f"{rank}.log").read_text()) for rank, one in enumerate(started)]
    finally:
        for one in started:
            one.kill()
            one.wait()


def compare() -> None:
    """Compare every policy; prints what agrees and ends at what does not."""
    world = World.from_env()
    whole = {name: learnt(name, World()) for name in MADE}
    with world.process_group():
        for name in MADE:
            found = learnt(name, world)
            assert found.keys() == whole[name].keys(), name
            for key, value in found.items():
                name_of = partial("{} {}: {}".format, name, key)
                torch.testing.assert_close(value, whole[name][key], rtol=2e-4, atol=2e-6, msg=name_of)
            print(f"{name}: {len(found)} tensors agree")


def raises() -> None:
    raise ValueError("a broken frame")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def is_told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def train(event: str, step: str, *arguments: str) -> None:
    """``robolearn-train``, in which something happens to the second process before one of its updates."""
    update = Update.__call__

    def eventful(self: Update, batches: Any, now: int) -> Any:
        if now == int(step) and self.world.rank == 1:
            {"raises": raises, "dies": dies, "is_told_to_end": is_told_to_end}[event]()
        return update(self, batches, now)

    Update.__call__ = eventful
    cli.main(arguments)


if __name__ == "__main__":
    train(*sys.argv[2:]) if sys.argv[1] == "train" else compare()
