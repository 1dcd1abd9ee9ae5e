"""PaliGemma's published weights, as transformers saves them, in this project's names."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from robolearn.errors import UserError, one_line

KEY = "policy.pretrained_paligemma"

# Versions of transformers name the parts differently; files of all of them are read.
NAMES = [
    (r"^model\.(?=vision_tower|multi_modal_projector|language_model)", r""),
    (r"^vision_tower\.(?:vision_model\.)?", r"vision."),
    (r"^multi_modal_projector\.linear\.", r"projector."),
    (r"^(?:language_model\.lm_head|lm_head|language_model\.(?:model\.)?embed_tokens)\.", r"words."),
    (r"^language_model\.(?:model\.)?", r"language."),
]


def rename(name: str) -> str:
    """The name here of a parameter of transformers' PaliGemma."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def load_paligemma(model: nn.Module, name: str, download: bool) -> None:
    """Fill a `PaliGemma` from a folder or a hub id.

    Raises:
        UserError: The weights are missing or do not fit.
    """
    folder = find(name, download)
    parameters, missing = dict(model.named_parameters()), {key for key, _ in model.named_parameters()}
    for key, value in tensors(folder):
        if key not in parameters:
            message = f"policy.pretrained_paligemma={name} has a parameter {key} that policy=pi0 does not know."
            raise UserError(message, key=KEY)
        parameter = parameters[key]
        if parameter.shape != value.shape:
            raise UserError(
                f"policy.pretrained_paligemma={name} has {key} of shape {tuple(value.shape)}, the policy of "
                f"{tuple(parameter.shape)}; see policy.vision and policy.language.",
                key=KEY,
            )
        with torch.no_grad():
            parameter.copy_(value)
        missing.discard(key)
    if missing:
        message = f"policy.pretrained_paligemma={name} lacks {len(missing)} parameters, such as {min(missing)}."
        raise UserError(message, key=KEY)


def find(name: str, download: bool) -> Path:
    """The folder of weights that a path or a hub id names.

    Raises:
        UserError: It does not exist or holds no weights.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        try:
            folder = Path(snapshot_download(name, local_files_only=not download, allow_patterns=["*.safetensors*"]))
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = one_line(error, 150)
            fix = (
                "there is no such folder, nor is it a hub id that has been fetched before; give a folder with "
                "PaliGemma's *.safetensors, or add policy.download=true"
            )
            if download:
                fix = f"it could not be fetched from the Hugging Face hub ({reason})"
            raise UserError(f"policy.pretrained_paligemma={name}: {fix}.", key=KEY) from error
    if not any(folder.glob("*.safetensors")):
        message = f"policy.pretrained_paligemma={name} holds no *.safetensors file"
        raise UserError(message, key=KEY, fix="give the folder that does")
    return folder


def tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Names here and values of all files of a folder, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no dict)
                    yield rename(key), file.get_tensor(key)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error})", key=str(path), fix="download it again") from error
