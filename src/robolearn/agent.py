"""An agent acts in environments: observation history, normalisation and action chunks, outside the policies."""

from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.training.cuda_graph import CudaGraphed
from robolearn.types import Batch


class Agent:
    """Acts with a policy in N environments at once.

    Keeps the last observations in the policy's window (the first one is repeated at the start of an episode) and a
    queue of predicted actions; when it is empty, the policy predicts the next chunk. With a `temporal_ensemble_coeff`,
    the action is the weighted mean of the predictions of all chunks so far for this step.

    Args:
        policy: In evaluation mode, on `device`; not changed.
        normalizer: On `device`.
        device: Where the policy computes.
        amp_dtype: Precision of autocast; None computes in float32.
        tasks: Instructions, for a policy that uses language: one for all environments, or one for each.
        explore: Act to collect episodes to learn from.
        cuda_graph: True: replay predictions as CUDA graphs; otherwise they run as usual.
        compile: Have the policy compile its networks for acting, in place.
    """

    def __init__(
        self,
        policy: Policy,
        normalizer: Normalizer,
        device: torch.device,
        amp_dtype: torch.dtype | None = None,
        tasks: Sequence[str] = (),
        explore: bool = False,
        cuda_graph: bool | None = None,
        compile: bool = False,
    ) -> None:
        self.policy, self.normalizer, self.device, self.amp_dtype = policy, normalizer, device, amp_dtype
        # A model-based policy's window includes future frames, which only a dataset has.
        self._offsets = [offset for offset in policy.spec.window.observation if offset <= 0]
        self._history: deque[Batch] = deque(maxlen=1 - min(self._offsets))
        self._actions: deque[np.ndarray] = deque()
        self.tasks = tasks if policy.spec.uses_language else ()
        encoded = policy.encode_tasks(tasks) if policy.spec.uses_language else {}
        self._tasks = {key: value.to(device) for key, value in encoded.items()}
        self.explore = explore
        self._state: Batch = {}
        captures = cuda_graph is True and device.type == "cuda" and policy.spec.capturable
        # Two graphs: an episode's first prediction has no state.
        self._predict = (
            CudaGraphed(self._chunk, "Acting", required=True, warmup=1, max_graphs=2) if captures else self._chunk
        )
        if compile:
            policy.compile_acting()
        coeff = policy.spec.temporal_ensemble_coeff
        self._ensemble = None if coeff is None else TemporalEnsemble(coeff)

    def reset(self) -> None:
        """Clear history, queue and state; call it when episodes start."""
        self._history.clear()
        self._actions.clear()
        self._state = {}
        if self._ensemble:
            self._ensemble.reset()

    @torch.inference_mode()
    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The actions (N, A) for observations (N, ...), in the robot's units; images are uint8 (N, C, H, W)."""
        now = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in observation.items()}
        self._history.append(now)
        while len(self._history) < (self._history.maxlen or 1):
            self._history.append(now)
        if not self._actions:
            self._actions.extend(self._next_actions())
        return self._actions.popleft()

    def _next_actions(self) -> np.ndarray:
        """The next actions to execute, (n_action_steps, N, A)."""
        frames = [self._history[offset - 1] for offset in self._offsets]
        stacked = {key: torch.stack([frame[key] for frame in frames], dim=1) for key in frames[-1]}
        batch = {key: value.to(self.device, non_blocking=True) for key, value in stacked.items()}
        predicted, self._state = self._predict([batch | self._task_batch(batch), self._state])
        chunk = predicted["chunk"]
        if self._ensemble:
            chunk = self._ensemble(chunk).unsqueeze(1)
        actions = self.normalizer.decode_action(chunk[:, : self.policy.spec.n_action_steps], batch)
        return actions.transpose(0, 1).cpu().numpy()

    def _chunk(self, batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
        """The part of a prediction that a CUDA graph may hold: from batch and state to chunk and next state."""
        batch, state = batches
        autocast = torch.autocast(self.device.type, self.amp_dtype) if self.amp_dtype else nullcontext()
        with autocast:
            chunk, state = self.policy.act(self.normalizer.encode(batch), state, self.explore)
        return [{"chunk": chunk.float()}, state]

    def _task_batch(self, batch: Batch) -> Batch:
        """The encoded instruction of each environment, (N, ...)."""
        count = len(next(iter(batch.values())))
        return {key: value.expand(count, *value.shape[1:]) for key, value in self._tasks.items()}


@dataclass(frozen=True)
class AgentFactory:
    """Makes agents that share everything but their policy and whether they explore.

    Args:
        normalizer: On `device`.
        device: Where the policies compute.
        amp_dtype: See `Agent`.
        tasks: See `Agent`.
        cuda_graph: See `Agent`.
        compile: See `Agent`.
    """

    normalizer: Normalizer
    device: torch.device
    amp_dtype: torch.dtype | None = None
    tasks: Sequence[str] = ()
    cuda_graph: bool | None = None
    compile: bool = False

    def __call__(self, policy: Policy, explore: bool = False) -> Agent:
        """An agent with this policy, which is put into evaluation mode."""
        return Agent(
            policy.eval(),
            self.normalizer,
            self.device,
            self.amp_dtype,
            self.tasks,
            explore=explore,
            cuda_graph=self.cuda_graph,
            compile=self.compile,
        )


class TemporalEnsemble:
    """Averages the predictions of overlapping chunks for the same step (ACT, arXiv:2304.13705, section IV-A).

    The i-th oldest prediction of a step has weight exp(-m i), so with a positive m older ones count more.

    Args:
        coeff: m.
    """

    def __init__(self, coeff: float) -> None:
        self.coeff = coeff
        self.reset()

    def reset(self) -> None:
        """Drop all chunks; call it when episodes start."""
        self._mean: Tensor | None = None
        self._chunks = 0

    def __call__(self, chunk: Tensor) -> Tensor:
        """The actions (N, A) of this step, given the chunk (N, T, A) predicted now; call it at every step."""
        # A running mean: the weight of the newest of n + 1 predictions is exp(-m n) / sum_i exp(-m i).
        ages = torch.arange(chunk.shape[1], device=chunk.device)
        weights = 1 / (self.coeff * ages).exp().cumsum(0)
        # The last step of the chunk is new, the one before has been predicted once, and so on.
        earlier = ages.flip(0).clamp(max=self._chunks)
        if self._mean is None:
            self._mean = torch.zeros_like(chunk)
        weight = weights[earlier].to(chunk.dtype).unsqueeze(-1)
        mean = self._mean + weight * (chunk - self._mean)
        self._mean = torch.cat([mean[:, 1:], torch.zeros_like(mean[:, :1])], dim=1)
        self._chunks += 1
        return mean[:, 0]
