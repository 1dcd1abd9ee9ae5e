"""A run small enough to be trained in milliseconds: six weights, data in memory, an evaluator that counts."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.agent import AgentFactory
from robolearn.checkpoints.store import Checkpoints
from robolearn.data.batch_stream import BatchTransform, TransformedStream
from robolearn.data.loader import Loader
from robolearn.data.sampling import BatchSampler
from robolearn.episodes import RolloutInterrupted
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy, PolicySpec
from robolearn.rollouts.evaluation import EvalResult
from robolearn.runs.logger import Logger
from robolearn.runs.run import Run
from robolearn.trainer import Trainer
from robolearn.training.ema import Ema
from robolearn.training.intervals import Intervals
from robolearn.training.optim import build_param_groups
from robolearn.training.phases import OfflinePhase, OnlinePhase, Phase
from robolearn.training.schedules import diffusers_schedule
from robolearn.training.update import Update
from robolearn.types import Batch, Feature, Spec, Window

CPU = torch.device("cpu")
SPEC = Spec({"observation.state": Feature("STATE", (2,))}, Feature("ACTION", (2,)), 10.0)
CONFIG = {"seed": 0, "batch_size": 4, "offline": {"steps": 12}, "policy": {"width": 2}}
FRAMES = 30


class Data:
    """Frames of random numbers, gathered as a dataset does."""

    device = CPU

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.state = torch.randn(FRAMES, 1, 2, generator=generator)
        self.action = self.state * 2 + 0.1 * torch.randn(FRAMES, 1, 2, generator=generator)

    def batch(self, indices: Tensor, window: Window, *, pin: bool = False) -> Batch:
        return {"observation.state": self.state[indices], "action": self.action[indices], "index": indices}


class Line(Policy):
    """A linear policy whose loss draws from every generator; `at` holds what happens in the loss of which call."""

    spec = PolicySpec(Window(), 1, {})

    def __init__(self, noise: float = 0.1, at: dict[int, Callable[[], Any]] | None = None) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2)
        self.noise, self.at, self.calls = noise, at or {}, 0

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        factor = self.at[self.calls]() if self.calls in self.at else None
        noise = torch.randn(batch["action"].shape) + random.random() + float(np.random.rand())
        errors = (self.line(batch["observation.state"]) - batch["action"] + self.noise * noise) ** 2
        loss = errors.mean()
        if isinstance(factor, float):
            loss = loss * factor
        return loss, {"largest": errors.detach().max()}

    def act(self, observation: Batch, state: Batch, explore: bool = False) -> tuple[Tensor, Batch]:
        return self.line(observation["observation.state"]), {}


class Counting:
    """An evaluator whose success rate is a function of the weights; `stops` are the calls that a signal interrupts."""

    def __init__(self, during: dict[int, Callable[[], Any]] | None = None) -> None:
        self.during, self.calls, self.folders = during or {}, 0, []

    def __call__(self, agent: Any, folder: Path, stop: Callable[[], bool] = lambda: False) -> EvalResult:
        self.calls += 1
        if self.calls in self.during:
            self.during[self.calls]()
        if stop():
            raise RolloutInterrupted
        self.folders.append(folder.name)
        assert not agent.policy.training
        weights = torch.cat([p.flatten() for p in agent.policy.parameters()])
        return EvalResult({"success_rate": weights.double().sin().sum().item()}, [], None, 10.0)


class CountingCollector:
    """A collector that only notes before which updates it was asked."""

    def __init__(self) -> None:
        self.collected: list[int] = []
        self.finished: list[int] = []

    def collect(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        self.collected.append(step)
        return {}

    def finish(self, step: int, stop: Callable[[], bool]) -> dict[str, float]:
        self.finished.append(step)
        return {}

    def clear(self) -> None:
        self.collected = []

    def checkpointed(self, step: int, kept: Sequence[int]) -> None:
        pass

    def close(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {"collected": list(self.collected)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.collected = list(state["collected"])


def trainer(
    folder: Path,
    *,
    steps: int = 12,
    log: int = 3,
    evaluate: int = 0,
    save: int = 4,
    checkpoint: bool = True,
    policy: Line | None = None,
    evaluator: Any = None,
    ema: bool = False,
    tensorboard: bool = False,
    batch_size: int = 4,
    lr: float = 0.05,
    warmup: int = 2,
    optimizer: Any = torch.optim.Adam,
    keep_last: int = 2,
    num_workers: int = 0,
    gradient_accumulation_steps: int = 1,
    transforms: Sequence[BatchTransform] = (),
    collector: Any = None,
    offline_steps: int = 4,
    **options: Any,
) -> Trainer:
    """A run in a folder, new or to be resumed, seeded as an entry point does."""
    given = policy or Line()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    for parameter in given.parameters():
        nn.init.zeros_(parameter)
    folder.mkdir(parents=True, exist_ok=True)
    adam = optimizer(build_param_groups(given.param_groups(), {}), lr=lr)
    normalizer = Normalizer(SPEC, given.spec.normalization_mapping)
    schedule = diffusers_schedule(adam, steps, num_warmup_steps=warmup)
    update = Update(given, normalizer, adam, schedule, CPU, ema=Ema(given) if ema else None, **options)
    loader = Loader(Data(), BatchSampler(torch.arange(FRAMES), batch_size, 0), given.spec.window, CPU, num_workers)
    stream, n = TransformedStream(loader, transforms), gradient_accumulation_steps
    phases: list[Phase] = [OfflinePhase(0, offline_steps if collector else steps, stream, n)]
    if collector:
        phases.append(OnlinePhase(offline_steps, steps - offline_steps, stream, n, collector=collector))
    return Trainer(
        update=update,
        phases=phases,
        intervals=Intervals(log, evaluate, save, checkpoint),
        run=Run(folder, CONFIG, []),
        logger=Logger(folder, tensorboard),
        checkpoints=Checkpoints(folder, "seed: 0\n", SPEC, keep_last),
        init_weights=lambda policy, normalizer: policy.load_pretrained(),
        make_agent=AgentFactory(normalizer, CPU),
        evaluator=evaluator,
    )


def trained(folder: Path, **options: Any) -> Trainer:
    """A run that came to its end."""
    made = trainer(folder, **options)
    made.train()
    return made


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    file = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    clock = ("time", "train/samples_per_s", "train/data_wait")
    return [{key: value for key, value in line.items() if key not in clock} for line in lines]


def saved(folder: Path) -> list[int]:
    """The steps whose checkpoints are there."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*"))


def status(folder: Path) -> dict[str, Any]:
    """The content of status.json."""
    return json.loads((folder / "status.json").read_text())
