"""Instructions for policies that use language: selected, encoded once, gathered on the device."""

from collections.abc import Sequence

import torch

from robolearn.errors import UserError
from robolearn.policies.base import Policy
from robolearn.rollouts.evaluation import Evaluator
from robolearn.types import Batch


class TaskEmbeddings:
    """Adds the encoded instruction of each frame to batches.

    Args:
        policy: Uses language.
        tasks: The dataset's tasks, by task index.
        device: The device of the batches.
        prompts: What the policy is given in rollouts; those that are none of `tasks` get the next task indices.

    Attributes:
        tasks: The dataset's tasks and the new prompts, by task index.

    Raises:
        UserError: The dataset has no task, or the policy cannot encode one.
    """

    def __init__(self, policy: Policy, tasks: Sequence[str], device: torch.device, prompts: Sequence[str] = ()) -> None:
        if not tasks:
            raise UserError(
                "The policy reads tasks, but the dataset has none; choose another dataset or policy.", key="dataset"
            )
        self.tasks = (*tasks, *(prompt for prompt in dict.fromkeys(prompts) if prompt not in tasks))
        self._encoded = {key: value.to(device) for key, value in policy.encode_tasks(self.tasks).items()}

    def __call__(self, batch: Batch) -> Batch:
        """A new batch with the encoded task of each frame, by its ``task_index`` (B,)."""
        return batch | {key: value[batch["task_index"]] for key, value in self._encoded.items()}


def select_task(wanted: str | None, learned: Sequence[str], instruction: str | None) -> str:
    """The instruction that a policy is given in an evaluation.

    Args:
        wanted: The key ``eval.task``; goes before everything else.
        learned: The dataset's tasks; the only one is taken.
        instruction: The simulator's instruction; taken where the dataset has several tasks or none.

    Raises:
        UserError: None of them decides.
    """
    if wanted:
        return wanted
    if len(learned) == 1:
        return learned[0]
    if instruction:
        return instruction
    listed = ", ".join(repr(task) for task in learned[:5]) or "none"
    raise UserError(f"eval.task: the policy needs an instruction; it has learned these: {listed}.", key="eval.task")


def task_prompts(policy: Policy, evaluator: Evaluator, learned: Sequence[str]) -> list[str]:
    """The instructions of an agent in an evaluation; empty where its policy uses no language.

    Raises:
        UserError: Nothing selects one.
    """
    if not policy.spec.uses_language:
        return []
    return [select_task(evaluator.task, learned, evaluator.env.instruction)]
