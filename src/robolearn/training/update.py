"""One update: the loss and its gradient, clipping, the optimizer's step, the schedule and the average of weights."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from robolearn.distributed.world import World
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.training.cuda_graph import CudaGraphed, Scalars
from robolearn.training.ema import Ema
from robolearn.training.optim import make_capturable
from robolearn.training.state import Stateful
from robolearn.types import Batch


class PolicyLoss(nn.Module):
    """The loss of a policy on batches in the dataset's units, as one module that DDP and torch.compile can wrap."""

    def __init__(self, policy: Policy, normalizer: Normalizer) -> None:
        super().__init__()
        self.policy, self.normalizer = policy, normalizer

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the scalars to log."""
        return self.policy.loss(self.normalizer.encode(batch))


@dataclass
class Update:
    """Trains a policy in place, one optimizer step a call. Nothing in it synchronises with the device.

    Args:
        policy: On `device`.
        normalizer: Brings batches to the policy's scale, on `device`.
        optimizer: Over the policy's parameters.
        schedule: Stepped once an update.
        device: Where the policy and the batches are.
        ema: The average of weights that acts in the policy's stead.
        grad_clip_norm: Largest norm of the gradient over all parameters; None does not clip.
        amp_dtype: Precision of autocast; None computes in float32.
        compile: Compile the loss.
        cuda_graph: Capture the update in a CUDA graph; None: try to.
        world: The processes that train the policy together, each on its shard of every batch.
    """

    policy: Policy
    normalizer: Normalizer
    optimizer: Optimizer
    schedule: LRScheduler
    device: torch.device
    ema: Ema | None = None
    grad_clip_norm: float | None = 10.0
    amp_dtype: torch.dtype | None = None
    compile: bool = False
    cuda_graph: bool | None = False
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        # bfloat16 has float32's range, so only float16 needs its gradients scaled.
        scales = self.amp_dtype == torch.float16 and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales)
        loss = PolicyLoss(self.policy, self.normalizer)
        if self.compile:
            loss.compile(dynamic=False)
        self._loss = self.world.wrap_ddp(loss)
        self._graphed: CudaGraphed | None = None
        if self.cuda_graph is not False:
            make_capturable(self.optimizer, self.device)
            required = self.cuda_graph is True
            self._graphed = CudaGraphed(self.forward_backward_step, "The update", required=required)

    def __call__(self, batches: Sequence[Batch], step: int) -> Scalars:
        """Train on batches, whose gradients are averaged.

        Args:
            batches: On the device.
            step: Updates done before.

        Returns:
            The scalars to log of each batch, then ``grad_norm``; on the device.
        """
        self.policy.train()
        self.policy.before_step(step)
        if self._graphed:
            # Other parameters may be trained than before.
            scalars = self._graphed(batches, key=tuple(p.requires_grad for p in self.policy.parameters()))
        else:
            scalars = self.forward_backward_step(batches)
        self.schedule.step()
        if self.ema:
            self.ema.update()
        return scalars

    def forward_backward_step(self, batches: Sequence[Batch]) -> Scalars:
        """The part of an update that a CUDA graph may hold; returns what the update does."""
        self.optimizer.zero_grad(set_to_none=True)
        scalars = []
        for batch in batches:
            with self._autocast():
                loss, metrics = self._loss(batch)
            self.scaler.scale(loss / len(batches)).backward()
            scalars.append({"loss": loss.detach(), **metrics})
        self.scaler.unscale_(self.optimizer)
        scalars.append({"grad_norm": self._clip_gradients()})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.policy.after_step()
        return scalars

    @property
    def eval_policy(self) -> Policy:
        """The policy that acts: the average of weights where there is one."""
        return cast(Policy, self.ema.model) if self.ema else self.policy

    def init_weights(self, init: Callable[[Policy, Normalizer], None]) -> None:
        """Let a function fill the policy and the normalizer before the first update."""
        init(self.policy, self.normalizer)
        if self.ema:
            self.ema.copy()

    def modules_to_save(self) -> dict[str, nn.Module]:
        """The modules that act, whose weights a checkpoint holds for others to load."""
        return {"policy": self.eval_policy, "normalizer": self.normalizer}

    def parts(self) -> dict[str, Stateful]:
        """What else the coming updates depend on, besides the weights."""
        parts: dict[str, Stateful] = {
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        return parts | ({"ema": self.ema} if self.ema else {})

    def learning_rates(self) -> dict[str, float]:
        """The present learning rate of each parameter group; may synchronise with the device."""
        groups = self.optimizer.param_groups
        return {group.get("name", str(i)): float(group["lr"]) for i, group in enumerate(groups)}

    def _clip_gradients(self) -> Tensor:
        """The gradient's norm over all parameters, before it is clipped."""
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        if self.grad_clip_norm is None:
            return nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
        return nn.utils.clip_grad_norm_(parameters, self.grad_clip_norm)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.amp_dtype) if self.amp_dtype else nullcontext()
