"""The checkpoint that initialises a run or is evaluated: weights and statistics, ours or LeRobot's."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from robolearn.checkpoints.lerobot import config_json, weights
from robolearn.checkpoints.locate import WEIGHTS, is_lerobot_checkpoint
from robolearn.checkpoints.store import load_spec, verified
from robolearn.errors import UserError, one_line
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.types import Spec

log = logging.getLogger(__name__)


class PretrainedCheckpoint:
    """A folder of a policy's weights.

    Args:
        folder: What `robolearn.checkpoints.locate.locate` found.

    Raises:
        UserError: A file in it is damaged, or of a policy that is not supported.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = config_json.read(folder) if is_lerobot_checkpoint(folder) else None
        if self._config is None:
            verified(folder)

    def spec(self, fps: float = 1.0) -> Spec:
        """The features that its policy observes and its action.

        Args:
            fps: Frames a second of the robot, which LeRobot's checkpoints do not store.
        """
        return load_spec(self.folder) if self._config is None else weights.spec_of(self._config, fps)

    def check(self, policy: Policy) -> None:
        """Check that the weights fit, by their shapes alone.

        Raises:
            UserError: They do not.
        """
        with self._opened() as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        self._check(policy, self._named({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}))

    def load(self, policy: Policy) -> None:
        """Fill a policy.

        Raises:
            UserError: The weights do not fit.
        """
        tensors = self._named(self._tensors())
        self._check(policy, tensors)
        policy.load_state_dict({name[len("policy.") :]: v for name, v in tensors.items() if name.startswith("policy.")})

    def init_weights(self, policy: Policy, normalizer: Normalizer) -> None:
        """Fill a policy and its normaliser; statistics that the checkpoint lacks keep their value.

        Raises:
            UserError: The weights do not fit.
        """
        self.load(policy)
        self.load_statistics(normalizer, strict=False)

    def load_statistics(self, normalizer: Normalizer, strict: bool = True) -> None:
        """Fill a normaliser.

        Args:
            normalizer: Filled in place.
            strict: Whether missing statistics are an error; otherwise they keep their value, and a warning names them.

        Raises:
            UserError: Statistics are missing or not finite, and `strict`.
        """
        found = self.load_stats()
        taken, faults = {}, {}
        for name, own in normalizer.state_dict().items():
            value = found.get(name)
            if value is None:
                faults[name] = "are missing"
            elif value.numel() != own.numel():
                faults[name] = f"have shape {tuple(value.shape)} where {tuple(own.shape)} is needed"
            elif not value.isfinite().all():
                faults[name] = "are not finite"
            else:
                taken[name] = value.reshape(own.shape)
        if faults and strict:
            name, fault = next(iter(faults.items()))
            raise UserError(
                f"{self.folder}: the statistics {_words(name)} {fault}, without which its policy cannot act",
                key=name,
                fix="train it on a dataset with policy.path=, which gives it the dataset's",
            )
        normalizer.load_state_dict(taken, strict=False)
        if faults:
            listed = ", ".join(f"{_words(name)} {fault}" for name, fault in faults.items())
            log.warning("Of the statistics in %s, %s; the dataset's are used there.", self.folder, listed)

    def load_stats(self) -> dict[str, Tensor]:
        """The statistics by their names in a normaliser's state dict.

        Raises:
            UserError: A file with them is missing or damaged.
        """
        with self._opened() as file:
            names = [n for n in file.keys() if n.startswith(("normalizer.", "normalize_", "unnormalize_"))]  # noqa: SIM118
            found = self._named({name: file.get_tensor(name) for name in names})
        if self._config is not None:
            found |= weights.load_processor_stats(config_json.statistics_files(self.folder))
        prefix = "normalizer."
        return {name[len(prefix) :]: value for name, value in found.items() if name.startswith(prefix)}

    def _named(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors) if self._config is None else weights.to_robolearn(self._config["type"], tensors)

    def _opened(self) -> safe_open:
        try:
            return safe_open(self.folder / WEIGHTS, "pt")
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from error

    def _tensors(self) -> dict[str, Tensor]:
        try:
            return load_file(self.folder / WEIGHTS)
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> UserError:
        file = self.folder / WEIGHTS
        return UserError(
            f"{file} is no file of weights ({one_line(error)}); get it again, with git lfs say.", key=str(file)
        )

    def _check(self, policy: Policy, tensors: Mapping[str, Tensor]) -> None:
        own = {f"policy.{name}": tuple(value.shape) for name, value in policy.state_dict().items()}
        faults = [
            f"{name} has shape {tuple(tensors[name].shape)} there and {shape} here"
            for name, shape in own.items()
            if name in tensors and tensors[name].shape != shape
        ]
        faults += [f"{name} is missing there" for name in own if name not in tensors]
        faults += [f"{name} is unknown here" for name in tensors if name not in own and name.startswith("policy.")]
        if faults:
            more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
            raise UserError(
                f"The weights in {self.folder} do not fit: {faults[0].removeprefix('policy.')}{more}; leave the keys "
                "of policy that decide sizes as they were, and take data of a robot with the same features.",
                key="policy.path",
            )


def _words(name: str) -> str:
    _, key, statistic = name.split(".")
    return f"{statistic} of {key}"
