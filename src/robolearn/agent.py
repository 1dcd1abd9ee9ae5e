"""From observations to actions: history, normalisation and action chunks, outside the policies."""

from collections import deque
from contextlib import nullcontext

import numpy as np
import torch

from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.types import Batch


class Agent:
    """Acts with a policy in N environments at once.

    Keeps the last observations the policy needs (the first one is repeated at the start of an episode) and a queue of
    the predicted actions; when it is empty, the policy predicts the next chunk.

    Args:
        policy: In evaluation mode, on `device`; not changed.
        normalizer: On `device`.
        device: Where the policy computes.
        amp_dtype: Precision of autocast; None computes in float32.
    """

    def __init__(
        self, policy: Policy, normalizer: Normalizer, device: torch.device, amp_dtype: torch.dtype | None = None
    ) -> None:
        self.policy, self.normalizer, self.device, self.amp_dtype = policy, normalizer, device, amp_dtype
        # A model-based policy's window also looks ahead, which only a dataset can.
        self._offsets = [offset for offset in policy.window.observation if offset <= 0]
        self._history: deque[Batch] = deque(maxlen=1 - min(self._offsets))
        self._actions: deque[np.ndarray] = deque()

    def reset(self) -> None:
        """Forget everything; call it when episodes start."""
        self._history.clear()
        self._actions.clear()

    @torch.inference_mode()
    def __call__(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """The actions (N, A) for observations (N, ...), in the robot's units; images are uint8 (N, C, H, W)."""
        now = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in observation.items()}
        self._history.append(now)
        while len(self._history) < (self._history.maxlen or 1):
            self._history.append(now)
        if not self._actions:
            self._actions.extend(self._predict())
        return self._actions.popleft()

    def _predict(self) -> np.ndarray:
        """The next actions to execute, (n_action_steps, N, A)."""
        frames = [self._history[offset - 1] for offset in self._offsets]
        stacked = {key: torch.stack([frame[key] for frame in frames], dim=1) for key in frames[-1]}
        batch = {key: value.to(self.device, non_blocking=True) for key, value in stacked.items()}
        autocast = torch.autocast(self.device.type, self.amp_dtype) if self.amp_dtype else nullcontext()
        with autocast:
            chunk = self.policy.act(self.normalizer.encode(batch))
        actions = self.normalizer.decode_action(chunk[:, : self.policy.n_action_steps].float())
        return actions.transpose(0, 1).cpu().numpy()
