"""What the trainer and the agent may expect of every policy."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from robolearn.normalize import ActionTransform, Mode
from robolearn.types import Batch, Kind, Window


class Policy(nn.Module):
    """A policy sees normalised tensors only, keeps no history and owns no optimizer.

    Attributes:
        window: The frames around a sampled frame that `loss` and `act` need.
        n_action_steps: How many actions of a predicted chunk are executed before the next is predicted.
        normalization_mapping: The scale the policy learns in, for each kind of feature.
        drop_n_last_frames: Frames at the end of every episode that are not sampled in training, because most of
            their action window would be padding.
        temporal_ensemble_coeff: The agent averages the overlapping chunks of all steps with weights exp(-m i), i
            counting from the oldest; needs n_action_steps == 1. None: each chunk is executed as predicted.
        space: Units of the robot that the policy learns in; None: the dataset's own.
        reads_tasks: The policy is told what to do, in words, and needs what `encode_tasks` makes of them.
        capturable: A CUDA graph may hold an update, and a prediction: `loss`, `after_step` and `act_after` neither wait
            for the device, nor look at a tensor's value, nor keep numbers of their own on the host.
        needs_reward: It learns from rewards, so that failures teach it too; otherwise it imitates what it sees.
    """

    window: Window
    n_action_steps: int
    normalization_mapping: Mapping[Kind, Mode]
    drop_n_last_frames: int = 0
    temporal_ensemble_coeff: float | None = None
    space: ActionTransform | None = None
    reads_tasks: bool = False
    capturable: bool = True
    needs_reward: bool = False

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The training loss, a scalar, and detached scalars to log; neither may wait for the device.

        What is drawn for each sample, and the count that a mean is over, come from `robolearn.rng`, so that several
        processes which share a batch learn what one would.

        Args:
            batch: Every key (B, T, ...) over `window`, with ``<key>_is_pad`` (B, T).
        """

    @abstractmethod
    def act(self, observation: Batch) -> Tensor:
        """Predict a chunk of actions (B, T, A), the first one for now, T at least `n_action_steps`.

        Args:
            observation: Every key (B, len(window.observation), ...), the newest frame last.
        """

    def encode_tasks(self, tasks: Sequence[str]) -> Batch:
        """What `loss` and `act` read of tasks told in words, by batch key: tensors (len(tasks), ...) on the CPU.

        Called once for a dataset or an evaluation, never for a batch.

        Raises:
            UserError: What turns words into tensors is not to be had, or refuses a task.
        """
        return {}

    def act_after(self, observation: Batch, memory: Batch) -> tuple[Tensor, Batch]:
        """Like `act`, for an agent that goes on acting.

        Args:
            observation: As for `act`.
            memory: What the previous call since the agent's reset returned, empty in the first.

        Returns:
            The chunk, and what the next call is to remember: float tensors by name.
        """
        return self.act(observation), {}

    def compile_acting(self) -> None:  # noqa: B027
        """Have `act` compiled where that pays; called at most once, and may take a minute at the first action."""

    def explore_after(self, observation: Batch, memory: Batch) -> tuple[Tensor, Batch]:
        """Like `act_after`, to collect episodes that the policy will learn from; draws what exploring needs."""
        return self.act_after(observation, memory)

    def check_online(self, offline_steps: int) -> None:  # noqa: B027 (most policies have no objection)
        """See that the policy may collect episodes after so many updates.

        Raises:
            UserError: It may not.
        """

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters to train, in groups that the key ``param_groups`` may give options of their own by name."""
        return {"policy": [p for p in self.parameters() if p.requires_grad]}

    def load_pretrained(self) -> None:  # noqa: B027 (most policies have nothing to load)
        """Load weights trained elsewhere; called once, before the first step of a fresh run.

        Raises:
            UserError: The weights are not there or do not fit.
        """

    def before_step(self, step: int) -> None:  # noqa: B027
        """Called before each update with the number of updates done, so that stages need no count of their own."""

    def after_step(self) -> None:  # noqa: B027
        """Called after each optimizer step, for target networks and the like."""
