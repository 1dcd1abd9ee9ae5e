"""What a checkpoint holds besides the weights: a registry of parts, saved by one loop and restored by one loop."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from robolearn import rng
from robolearn.distributed.world import World
from robolearn.errors import UserError


@runtime_checkable
class Stateful(Protocol):
    """A part of a run whose state a checkpoint holds, in plain containers and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """The state to save."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore a saved state."""
        ...


class TrainState:
    """The parts of a run by name, in the order in which they are restored.

    Args:
        parts: What the coming updates depend on.
        may_be_new: Parts that a resumed run may have although its checkpoint lacks them; they stay as they are.
    """

    def __init__(self, parts: Mapping[str, Stateful], may_be_new: Collection[str] = ()) -> None:
        self.parts, self.may_be_new = dict(parts), frozenset(may_be_new)

    def state_dict(self) -> dict[str, Any]:
        """The state of every part by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore every part.

        Raises:
            UserError: The checkpoint lacks a part, or holds one that this run does not have.
        """
        missing = [name for name in self.parts if name not in state and name not in self.may_be_new]
        unknown = [name for name in state if name not in self.parts]
        for fault, names in (("holds no state of", missing), ("holds the state of", unknown)):
            if names:
                end = "which this run needs" if names is missing else "which this run does not have"
                raise UserError(
                    f"The run's checkpoint {fault} {', '.join(names)}, {end}",
                    key=names[0],
                    fix="resume with the configuration it was saved with, or give another output_dir",
                )
        for name, part in self.parts.items():
            if name in state:
                part.load_state_dict(state[name])


class RngState:
    """The random-number generators of all processes that train together, as one part of a checkpoint.

    Args:
        world: These processes.
        device: Where batches are drawn for.
    """

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device

    def shard(self) -> None:
        """Let processes that train together draw the random numbers of their own shards of batches."""
        if self.world.size > 1:
            rng.enable_sharding(self.world.rank, self.world.size, self.device)

    def state_dict(self) -> dict[str, Any]:
        """The generators of each process, and the one that is in the same state in all of them."""
        return {"processes": self.world.all_gather_object(rng.get_rng_state()), "shared": rng.get_shared_state()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Restore them, also from more or fewer processes; those that were not there are seeded anew."""
        processes = state["processes"]
        rng.set_rng_state(processes[0])
        self.shard()
        rng.set_shared_state(state["shared"], self.device)
        if 0 < self.world.rank < len(processes):
            rng.set_rng_state(processes[self.world.rank])
