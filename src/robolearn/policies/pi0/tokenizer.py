"""Instructions as tokens of PaliGemma."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from robolearn.errors import UserError, one_line


class Tokenizer:
    """A tokenizer of transformers, loaded when it is first used.

    Args:
        name: Its folder, or a hub id.
        max_length: Most tokens of an instruction.
        download: Whether a hub id may be downloaded; else it must be cached on this machine.
    """

    def __init__(self, name: str, max_length: int, download: bool = False) -> None:
        self.name, self.max_length, self.download = name, max_length, download
        self._tokenizer: Any = None

    def __call__(self, tasks: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens (N, L) of N instructions, L the length of the longest, and a mask (N, L) that is false for padding.

        Raises:
            UserError: The tokenizer is missing, or an instruction has more tokens than `max_length`.
        """
        if self._tokenizer is None:
            self._tokenizer = self._load()
        # The line break ends the prompt, as in PaliGemma's own training.
        prompts = [task if task.endswith("\n") else f"{task}\n" for task in tasks]
        encoded = self._tokenizer(prompts, padding=True, return_tensors="pt")
        tokens, valid = encoded["input_ids"], encoded["attention_mask"].bool()
        for task, length in zip(tasks, valid.sum(-1).tolist(), strict=True):
            if length > self.max_length:
                raise UserError(
                    f"The task {task!r} has {length} tokens, more than policy.tokenizer_max_length={self.max_length}",
                    key="policy.tokenizer_max_length",
                    fix="raise it or shorten the task",
                )
        return tokens, valid

    def _load(self) -> Any:
        from transformers import AutoTokenizer

        folder = Path(self.name).expanduser()
        local = folder.is_dir()
        if local and not any(folder.glob("*token*")):
            raise UserError(
                f"policy.tokenizer={self.name} holds no tokenizer",
                key="policy.tokenizer",
                fix="give the folder with its tokenizer.json",
            )
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(folder) if local else self.name, local_files_only=local or not self.download
            )
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            raise UserError(self._why(local, error), key="policy.tokenizer") from error
        tokenizer.padding_side = "right"
        return tokenizer

    def _why(self, local: bool, error: Exception) -> str:
        reason = one_line(error, 150)
        if local:
            return f"policy.tokenizer={self.name} can't be read ({reason}); give the folder of another one."
        if self.download:
            return f"policy.tokenizer={self.name} could not be fetched from the Hugging Face hub ({reason})."
        return (
            f"policy.tokenizer={self.name}: there is no such folder, nor is it a hub id that has been fetched before; "
            "give a folder that holds PaliGemma's tokenizer, or add policy.download=true."
        )
