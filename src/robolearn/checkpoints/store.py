"""Checkpoints: written atomically, verified by checksum, with all that an exact resume needs."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file
from torch import nn

from robolearn.errors import UserError
from robolearn.system.files import atomic_dir, link, write_json, write_text
from robolearn.types import Feature, NonNegative, Positive, Spec

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
SCORE = "score.json"


class CorruptCheckpointError(Exception):
    """A checkpoint whose files differ from what was written."""


class Checkpoints:
    """The checkpoints of one run, in ``checkpoints/<step>/`` with the links ``last`` and ``best``.

    A folder holds ``model.safetensors`` (the weights that act, and the statistics of the normaliser), ``config.yaml``,
    ``spec.json``, ``train.safetensors`` (the weights that are trained, where an average of them acts), ``state.pt``
    (plain containers and tensors) and ``checksums.json``.

    Args:
        folder: The run's folder.
        config: The run's resolved configuration, as YAML text.
        spec: The policy's observation and action features.
        keep_last: How many of the newest are kept.
        keep_best: How many of the best by `metric` are kept besides.
        metric: An evaluation scalar, larger is better.
    """

    def __init__(
        self,
        folder: Path,
        config: str,
        spec: Spec,
        keep_last: Positive = 2,
        keep_best: NonNegative = 1,
        metric: str = "success_rate",
    ) -> None:
        self.folder = folder / "checkpoints"
        self.config, self.spec = config, spec
        self.keep_last, self.keep_best, self.metric = keep_last, keep_best, metric

    def save(self, step: int, models: Mapping[str, nn.Module], trained: nn.Module, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then move ``last`` to it and remove those no longer kept.

        Args:
            step: Updates done.
            models: The modules that act, by name; their state dicts are saved together.
            trained: The module that is trained; saved apart unless it is one of `models`.
            state: Plain containers and tensors for `torch.save`.
        """
        folder = self.folder / f"{step:08d}"
        with atomic_dir(folder) as temporary:
            save_file(_joined(models), temporary / WEIGHTS)
            if all(trained is not model for model in models.values()):
                save_file(_joined({"policy": trained}), temporary / "train.safetensors")
            torch.save(state, temporary / "state.pt")
            write_text(temporary / "config.yaml", self.config)
            write_json(temporary / "spec.json", dataclasses.asdict(self.spec))
            sums = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
            write_json(temporary / "checksums.json", sums)
        link(self.folder / "last", folder.name)
        self._prune(step)
        return folder

    def latest(self) -> Path | None:
        """The newest undamaged checkpoint; a warning names damaged ones.

        Removes what a killed run left half written or half removed.

        Raises:
            UserError: There are checkpoints, and all of them are damaged.
        """
        for rest in self.folder.glob(".[0-9]*"):
            shutil.rmtree(rest)
        folders = self._folders()
        for folder in reversed(folders):
            try:
                verify(folder)
            except CorruptCheckpointError as error:
                log.warning("Checkpoint %s is damaged (%s); the one before it is used.", folder, error)
                continue
            return folder
        if folders:
            raise UserError(
                f"Every checkpoint in {self.folder} is damaged; start afresh with another output_dir.",
                key=str(self.folder),
            )
        return None

    def steps(self) -> list[int]:
        """The steps of all checkpoints."""
        return [int(folder.name) for folder in self._folders()]

    def record_metrics(self, step: int, scalars: Mapping[str, float]) -> None:
        """Store the evaluation of the checkpoint of this step, if it exists, and update ``best``."""
        folder = self.folder / f"{step:08d}"
        if not folder.is_dir():
            return
        write_json(folder / SCORE, dict(scalars))
        self._link_best()

    def best_or_last(self) -> Path | None:
        """The best checkpoint, or the newest where none was evaluated; None without any."""
        return next((folder for name in ("best", "last") if (folder := self.folder / name).is_dir()), None)

    def _folders(self) -> list[Path]:
        return sorted(f for f in self.folder.glob("[0-9]*") if f.is_dir())

    def _best(self) -> list[Path]:
        """The `keep_best` best ones, the best first."""
        scored = []
        for folder in self._folders():
            if (folder / SCORE).exists():
                value = json.loads((folder / SCORE).read_text()).get(self.metric)
                if value is not None:
                    scored.append((value, folder))
        return [folder for _, folder in sorted(scored, reverse=True)[: self.keep_best]]

    def _link_best(self) -> None:
        if best := self._best():
            link(self.folder / "best", best[0].name)
        else:
            (self.folder / "best").unlink(missing_ok=True)

    def _prune(self, newest: int) -> None:
        # Those of later steps were damaged when the run resumed from an earlier one.
        doomed = [folder for folder in self._folders() if int(folder.name) > newest]
        _remove(doomed)
        folders = self._folders()
        kept = {*folders[-self.keep_last :], *self._best()}
        _remove([folder for folder in folders if folder not in kept])
        self._link_best()


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        # Renamed first, so that a kill in between leaves no half-removed checkpoint.
        doomed = folder.with_name(f".{folder.name}.removed")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its checksum.

    Raises:
        CorruptCheckpointError: A file is missing or differs.
    """
    try:
        sums = json.loads((folder / "checksums.json").read_text())
    except (OSError, ValueError):
        raise CorruptCheckpointError("checksums.json is missing or unreadable") from None
    if not isinstance(sums, dict) or WEIGHTS not in sums:
        raise CorruptCheckpointError("checksums.json is not what was written")
    for name, checksum in sums.items():
        if not (folder / name).is_file():
            raise CorruptCheckpointError(f"{name} is missing")
        if _checksum(folder / name) != checksum:
            raise CorruptCheckpointError(f"{name} differs from what was written")


def load_state(folder: Path) -> dict[str, Any]:
    """The state that a run resumes from besides its weights, as it was saved."""
    return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)


def load_models(folder: Path, models: Mapping[str, nn.Module]) -> None:
    """Fill modules with the weights that are evaluated: those of the average, where there is one."""
    tensors = load_file(folder / WEIGHTS)
    for name, model in models.items():
        prefix = f"{name}."
        model.load_state_dict({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})


def load_trained(folder: Path, trained: nn.Module) -> None:
    """Fill the module that is trained."""
    file = folder / "train.safetensors"
    tensors = load_file(file if file.exists() else folder / WEIGHTS)
    trained.load_state_dict({k[len("policy.") :]: v for k, v in tensors.items() if k.startswith("policy.")})


def load_spec(folder: Path) -> Spec:
    """The observation and action features of a checkpoint's policy."""
    content = json.loads((folder / "spec.json").read_text())
    observation = {k: Feature(f["kind"], tuple(f["shape"])) for k, f in content["observation"].items()}
    action = Feature("ACTION", tuple(content["action"]["shape"]))
    return Spec(observation, action, content["fps"], content.get("settings", {}), tuple(content.get("tasks", ())))


def verified(folder: Path) -> Path:
    """The folder of a checkpoint, after checking its files.

    Raises:
        UserError: They are damaged.
    """
    try:
        verify(folder)
    except CorruptCheckpointError as error:
        raise UserError(
            f"The checkpoint {folder} is damaged ({error}); use another one of the run.", key=str(folder)
        ) from None
    return folder


def _joined(models: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{name}.{key}": value.contiguous() for name, m in models.items() for key, value in m.state_dict().items()}


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()
