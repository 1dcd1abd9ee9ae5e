"""The contract of a policy: what the trainer and the agent may expect of each."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from robolearn.normalize import ActionTransform, NormalizationMode
from robolearn.types import Batch, Kind, Window


@dataclass(frozen=True)
class PolicySpec:
    """The constants of a policy: what it needs of data, of the agent and of the trainer.

    Attributes:
        window: The frames around a sampled frame that `Policy.loss` reads; `Policy.act` reads those of its observation
            offsets that are not in the future.
        n_action_steps: Actions of a predicted chunk that are executed before the next chunk is predicted.
        normalization_mapping: The normalisation of each kind of feature; kinds left out are not normalised.
        drop_n_last_frames: Frames at the end of every episode that are not sampled in training, because most of
            their action window would be padding.
        temporal_ensemble_coeff: The agent averages the overlapping chunks of all steps with weights exp(-m i), i
            counting from the oldest; needs n_action_steps == 1. None: each chunk is executed as predicted.
        action_transform: Units of state and action that the policy learns in, applied before normalisation and
            inverted after it; None: the dataset's own.
        uses_language: The policy reads instructions: `Policy.encode_tasks` turns them into tensors of the batch.
        capturable: CUDA graphs may hold an update and a prediction: `Policy.loss`, `Policy.after_step` and
            `Policy.act` neither synchronise with the device, nor read a tensor's value, nor count on the host.
        needs_reward: The policy learns from rewards, so from failures too; otherwise it imitates demonstrations.
        min_offline_steps: Updates on demonstrations before the policy can act at all, and so collect episodes.
    """

    window: Window
    n_action_steps: int
    normalization_mapping: Mapping[Kind, NormalizationMode]
    drop_n_last_frames: int = 0
    temporal_ensemble_coeff: float | None = None
    action_transform: ActionTransform | None = None
    uses_language: bool = False
    capturable: bool = True
    needs_reward: bool = False
    min_offline_steps: int = 0


class Policy(nn.Module):
    """A policy gets normalised tensors only, keeps no history and owns no optimizer.

    Attributes:
        spec: Its constants; set by the constructor, never changed.
    """

    spec: PolicySpec

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, a scalar, and detached scalars to log; neither may synchronise with the device.

        Random numbers of each sample, and the count that a mean is over, come from `robolearn.rng`, so that several
        processes that share a batch learn what a single one would.

        Args:
            batch: Every key (B, T, ...) over `spec.window`, with ``<key>_is_pad`` (B, T); not changed.
        """

    @abstractmethod
    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        """Predict a chunk of actions (B, T, A) from now on, T at least `spec.n_action_steps`.

        Args:
            observation: Every key (B, T, ...) over the offsets of `spec.window` up to 0, the newest frame last.
            state: What the previous call of the same episodes returned; empty at the start of an episode.
            explore: Act to collect episodes to learn from, with whatever noise the policy explores by.

        Returns:
            The chunk and the next state: float tensors by name, empty for a policy without one.
        """

    def encode_tasks(self, tasks: Sequence[str]) -> Batch:
        """Instructions as tensors (len(tasks), ...) on the CPU, by the batch keys that `loss` and `act` read.

        Called once for a dataset or an evaluation, never for a batch.

        Raises:
            UserError: The tokenizer is missing or refuses a task.
        """
        return {}

    def compile_acting(self) -> None:  # noqa: B027
        """Compile `act` where that pays; called at most once, and may take a minute at the first action."""

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters to train, by the name under which the key ``param_groups`` may set a group's options."""
        return {"policy": [p for p in self.parameters() if p.requires_grad]}

    def load_pretrained(self) -> None:  # noqa: B027 (most policies have nothing to load)
        """Load weights trained elsewhere; called once, before the first step of a fresh run.

        Raises:
            UserError: The weights are missing or do not fit.
        """

    def before_step(self, step: int) -> None:  # noqa: B027
        """Called before each update with the number of updates done, for policies that learn in stages."""

    def after_step(self) -> None:  # noqa: B027
        """Called after each optimizer step, for target networks and the like."""
