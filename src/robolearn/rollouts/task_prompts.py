"""What is to be done, from words to the tensors that a policy reads: encoded once, gathered on the device."""

from collections.abc import Sequence

import torch

from robolearn.errors import UserError
from robolearn.policies.base import Policy
from robolearn.rollouts.evaluation import Evaluator
from robolearn.types import Batch


class TaskEmbeddings:
    """Gives batches what the policy reads of the task of each of their frames.

    Args:
        policy: Reads tasks.
        tasks: In words, by task number.
        device: Where batches lie.

    Raises:
        UserError: The dataset tells no task, or the policy can't read one.
    """

    def __init__(self, policy: Policy, tasks: Sequence[str], device: torch.device) -> None:
        if not tasks:
            raise UserError("The policy reads tasks, but the dataset tells none; choose another dataset or policy.")
        self._encoded = {key: value.to(device) for key, value in policy.encode_tasks(tasks).items()}

    def __call__(self, batch: Batch) -> Batch:
        """A new batch with the encoded task of each frame, by its ``task_index`` (B,)."""
        return batch | {key: value[batch["task_index"]] for key, value in self._encoded.items()}


def select_task(wanted: str | None, learnt: Sequence[str], instruction: str | None) -> str:
    """The words that a policy is told in an evaluation.

    Args:
        wanted: The key ``eval.task``; goes before everything else.
        learnt: The dataset's tasks; the only one is taken.
        instruction: The simulator's own words; taken where the dataset has several tasks or none.

    Raises:
        UserError: None of them decides.
    """
    if wanted:
        return wanted
    if len(learnt) == 1:
        return learnt[0]
    if instruction:
        return instruction
    listed = ", ".join(repr(task) for task in learnt[:5]) or "none"
    raise UserError(f"eval.task: the policy must be told what to do; it has learnt these tasks: {listed}.")


def task_prompts(policy: Policy, evaluator: Evaluator, learnt: Sequence[str]) -> list[str]:
    """What an agent is told in an evaluation; nothing where its policy reads no tasks.

    Raises:
        UserError: Nothing decides what, or the policy can't read it.
    """
    if not policy.spec.uses_language:
        return []
    return [select_task(evaluator.task, learnt, evaluator.env.instruction)]
