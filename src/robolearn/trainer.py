"""The training loop: update, log, save, evaluate, until the last step."""

import logging
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Protocol, cast

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from robolearn import rng
from robolearn.agent import Agent
from robolearn.checkpoints.load import PretrainedCheckpoint
from robolearn.checkpoints.store import (
    Checkpoints,
    get_rng_state,
    load_models,
    load_state,
    load_trained,
    set_rng_state,
)
from robolearn.distributed.world import World
from robolearn.episodes import RolloutInterrupted
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.rollouts.evaluation import Evaluator
from robolearn.runs.logger import Logger
from robolearn.runs.run import Run, flatten
from robolearn.training.cuda_graph import CudaGraphed, Scalars
from robolearn.training.ema import Ema
from robolearn.training.metrics import TrainMetrics
from robolearn.training.online import Collector
from robolearn.training.optim import optimizer_state_dict, to_capturable
from robolearn.training.signals import GracefulShutdown
from robolearn.types import Batch

log = logging.getLogger(__name__)


@dataclass
class Phase:
    """A part of the training.

    Args:
        steps: Its updates.
    """

    steps: Annotated[int, Ge(0)]


class BatchStream(Protocol):
    """Where batches come from."""

    def iter_from(self, k: int) -> Generator[Batch, None, None]:
        """Batches k, k + 1, ... without end, each a function of its number and of what was collected by then."""
        ...


@dataclass
class Cadence:
    """How often what happens, in updates; 0 or less is never, apart from the checkpoint after the last."""

    log_freq: int
    eval_freq: int
    save_freq: int
    save_checkpoint: bool = True


class Loss(nn.Module):
    """A policy's loss of a batch as it was recorded, as one module with its weights."""

    def __init__(self, policy: Policy, normalizer: Normalizer) -> None:
        super().__init__()
        self.policy, self.normalizer = policy, normalizer

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the scalars to log."""
        return self.policy.loss(self.normalizer.encode(batch))


@dataclass
class Trainer:
    """Trains a policy and leaves checkpoints, evaluations and curves in its run's folder.

    Args:
        policy: Trained in place, on `device`.
        normalizer: Brings batches to the policy's scale, on `device`.
        optimizer: Over the policy's parameters.
        schedule: Stepped once an update.
        loader: Batches by their number, so that a resumed run sees those a run never stopped would.
        device: Where the policy is.
        steps: Updates in all.
        cadence: When to log, evaluate and save.
        run: The run's folder and status.
        logger: Curves.
        checkpoints: Where the run is saved.
        evaluator: Runs episodes of a simulator; None where there is none.
        ema: The average of weights that acts in the policy's stead.
        start: The checkpoint that a fresh run starts from; None: the policy's own beginning.
        tasks: Gives batches the tasks that the policy reads.
        told: What the policy is told in evaluations, in words.
        image_transforms: Augmentation of image batches, on the device.
        grad_clip_norm: Largest norm of the gradient over all parameters; None does not clip.
        gradient_accumulation_steps: Batches an update.
        amp_dtype: Precision of autocast; None computes in float32.
        compile: Compile the loss.
        cuda_graph: Capture the update in a CUDA graph; None: try to.
        collector: Collects episodes in the online phase; None where there is none.
        ranks: The processes that train the policy together, each on its share of every batch. The first of them alone
            writes and evaluates.
    """

    policy: Policy
    normalizer: Normalizer
    optimizer: Optimizer
    schedule: LRScheduler
    loader: BatchStream
    device: torch.device
    steps: int
    cadence: Cadence
    run: Run
    logger: Logger
    checkpoints: Checkpoints
    evaluator: Evaluator | None = None
    ema: Ema | None = None
    start: PretrainedCheckpoint | None = None
    tasks: Callable[[Batch], Batch] | None = None
    told: Sequence[str] = ()
    image_transforms: Callable[[Batch], Batch] | None = None
    grad_clip_norm: float | None = 10.0
    gradient_accumulation_steps: int = 1
    amp_dtype: torch.dtype | None = None
    compile: bool = False
    cuda_graph: bool | None = False
    collector: Collector | None = None
    ranks: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.step = 0
        self.saved = -1  # the step of the newest checkpoint
        self.scalars: dict[str, float] = {}
        self.last_evaluation: dict[str, float] = {}
        self.meter = TrainMetrics(self.device, self.ranks)
        # bfloat16 has float32's range, so only float16 needs its gradients scaled.
        scales = self.amp_dtype == torch.float16 and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales)
        loss = Loss(self.policy, self.normalizer)
        if self.compile:
            loss.compile(dynamic=False)
        self.batch_loss = self.ranks.wrap_ddp(loss)
        captures = self.cuda_graph is not False
        self.captured = CudaGraphed(self.descend, "The update", required=self.cuda_graph is True) if captures else None

    def train(self) -> float | None:
        """Run to the last step; returns the last value of the checkpoints' metric, which sweeps read."""
        with self.run.running(), GracefulShutdown() as self.interrupts, ExitStack() as stack:
            stack.callback(self.logger.close)
            if self.collector:
                stack.callback(self.collector.close)
            self.restore()
            self.prepare()
            batches = stack.enter_context(closing(self.loader.iter_from(self.step * self.gradient_accumulation_steps)))
            bar = stack.enter_context(self.progress_bar())
            self.meter.start()
            while self.step < self.steps:
                self.collect()
                self.update(batches)
                self.step += 1
                self.run.step = self.step
                bar.update()
                if self.due(self.cadence.log_freq):
                    self.scalars |= self.measure()
                    bar.set_postfix_str(self.meter.text(self.scalars))
                if self.saves():
                    self.save()
                self.finish_step()
                # Processes that train together stop at the same step, whichever of them was told to.
                if number := self.ranks.poll_max(self.interrupts.pending or 0):
                    self.leave(number)
            return self.finish()

    def prepare(self) -> None:
        """What comes between the last state that was loaded and the first update."""
        if self.captured:
            to_capturable(self.optimizer, self.device)

    def collect(self) -> None:
        """Let the policy collect what is due before the next update; after the last, take what still runs."""
        while self.collector:
            try:
                with self.meter.exclude():
                    if self.step < self.steps:
                        self.scalars |= self.collector(self.step, self.exploring, self.interrupted)
                    else:
                        self.scalars |= self.collector.finish(self.step, self.interrupted)
                break
            except RolloutInterrupted:
                self.leave()  # a restart collects it again, and so does a run that goes on

    def update(self, batches: Iterator[Batch]) -> None:
        """One optimizer step; nothing in it waits for the device."""
        self.policy.train()
        self.policy.before_step(self.step)
        with self.meter.data_wait():
            taken = [next(batches) for _ in range(self.gradient_accumulation_steps)]
        if self.image_transforms:
            taken = [self.image_transforms(batch) for batch in taken]
        if self.tasks:
            taken = [self.tasks(batch) for batch in taken]
        if self.captured:
            # A policy may train other parameters than before.
            *losses, norm = self.captured(taken, key=tuple(p.requires_grad for p in self.policy.parameters()))
        else:
            *losses, norm = self.descend(taken)
        for batch, scalars in zip(taken, losses, strict=True):
            self.meter.add(len(batch["index"]), scalars)
        self.meter.add(0, norm)
        self.schedule.step()
        if self.ema:
            self.ema.update()

    def descend(self, batches: Sequence[Batch]) -> Scalars:
        """The part of an update that is the device's alone: the scalars of each batch, then the gradient's norm."""
        self.optimizer.zero_grad(set_to_none=True)
        scalars = []
        for batch in batches:
            with self.autocast():
                loss, metrics = self.batch_loss(batch)
            self.scaler.scale(loss / len(batches)).backward()
            scalars.append({"loss": loss.detach(), **metrics})
        self.scaler.unscale_(self.optimizer)
        scalars.append({"grad_norm": self.clip_gradients()})
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.policy.after_step()
        return scalars

    def clip_gradients(self) -> Tensor:
        """The gradient's norm over all parameters, before it is clipped."""
        parameters = [p for p in self.policy.parameters() if p.grad is not None]
        if self.grad_clip_norm is None:
            return nn.utils.get_total_norm([cast(Tensor, p.grad) for p in parameters])
        return nn.utils.clip_grad_norm_(parameters, self.grad_clip_norm)

    def finish_step(self) -> None:
        """Evaluate where it is time, and write the step's scalars; may be done again after a restart."""
        while self.evaluates():
            evaluated = self.ranks.run_on_main(self.evaluate)
            if evaluated is not None:
                self.last_evaluation = evaluated
                self.scalars |= {f"eval/{name}": value for name, value in evaluated.items()}
                self.meter.start()
                break
            self.leave()  # a restart evaluates this step again, and so does a run that goes on
        if self.step >= self.steps:
            self.collect()
        if self.scalars:
            self.logger.scalars(self.step, self.scalars)
            self.scalars = {}

    def evaluate(self) -> dict[str, float] | None:
        """Run episodes with the weights that act, None if a signal stops it; the randomness of training stays."""
        assert self.evaluator
        graph = self.cuda_graph
        agent = Agent(self.acting().eval(), self.normalizer, self.device, self.amp_dtype, self.told, cuda_graph=graph)
        folder = self.run.folder / "eval" / f"{self.step:08d}"
        try:
            with rng.unsharded():
                result = self.evaluator(agent, folder, stop=self.interrupted)
        except RolloutInterrupted:
            return None
        told = ", ".join(f"{name} {value:.3g}" for name, value in result.scalars.items())
        log.info("Evaluated step %d: %s; videos in %s.", self.step, told, folder)
        self.checkpoints.record_metrics(self.step, result.scalars)
        if result.video is not None:
            self.logger.video(self.step, "eval/video", result.video, result.fps)
        return result.scalars

    def measure(self) -> dict[str, float]:
        """What the updates since the last call came to; the one place that waits for the device."""
        scalars = self.meter.read(self.step)
        rates = {group.get("name", str(i)): group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        scalars |= {f"train/lr/{name}": float(rate) for name, rate in rates.items()}
        if self.device.type == "cuda":
            scalars["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return scalars

    def save(self) -> None:
        """Write a checkpoint of everything that the coming steps depend on; this step's evaluation comes after it."""
        self.meter.check_finite(self.step)
        state = {
            "step": self.step,
            "optimizer": optimizer_state_dict(self.optimizer),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "meter": self.meter.state_dict(),
            "scalars": self.scalars,
            "last_evaluation": self.last_evaluation,
            "random": self.ranks.all_gather_object(get_rng_state()),
            "shared_random": rng.get_state(),
        }
        if self.collector:
            state["online"] = self.collector.state_dict(self.step)
        self.ranks.run_on_main(partial(self.checkpoints.save, self.step, self.models(), self.policy, state))
        if self.collector:
            self.collector.saved(self.checkpoints.steps())
        self.saved = self.step

    def restore(self) -> None:
        """Take up the newest sound checkpoint, or start afresh."""
        folder = self.ranks.run_on_main(self.checkpoints.latest)
        if folder is None:
            self.logger.truncate_after(-1)
            if self.start:
                self.start.init_weights(self.policy, self.normalizer)
            else:
                self.policy.load_pretrained()
            if self.ema:
                self.ema.copy()
            if self.collector:
                self.collector.replay.clear()
            self.logger.text("config", self.checkpoints.config)
            self.draw_apart()
            return
        state = load_state(folder)
        load_models(folder, self.models())
        load_trained(folder, self.policy)
        self.step = self.run.step = self.run.first_step = self.saved = state["step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.meter.load_state_dict(state["meter"])
        if self.collector and "online" in state:
            self.collector.load_state_dict(state["online"])
        self.scalars, self.last_evaluation = state["scalars"], state["last_evaluation"]
        set_rng_state(state["random"][0])
        self.draw_apart(state)
        log.info("Resumed from %s at step %d.", folder, self.step)
        written = self.ranks.run_on_main(partial(self.logger.truncate_after, self.step))
        if written is None:
            self.finish_step()
            return
        self.scalars = {}
        if self.evaluates():
            self.last_evaluation = {k.removeprefix("eval/"): v for k, v in written.items() if k.startswith("eval/")}

    def draw_apart(self, state: Mapping[str, Any] | None = None) -> None:
        """Let processes that train together draw what belongs to their samples, in a resumed run as they did."""
        if self.ranks.size > 1:
            rng.enable_sharding(self.ranks.rank, self.ranks.size, self.device)
        if state:
            rng.set_state(state["shared_random"], self.device)
            if 0 < self.ranks.rank < len(state["random"]):
                set_rng_state(state["random"][self.ranks.rank])

    def finish(self) -> float | None:
        """The last words of a run that came to its end."""
        self.meter.check_finite(self.step)
        # TensorBoard looks their values up among the scalars of these names.
        metrics = {f"eval/{name}": value for name, value in self.last_evaluation.items()}
        self.logger.hparams(_hyperparameters(self.run), metrics)
        if found := self.checkpoints.best_or_last():
            self.logger.model(found)
        folder = self.run.folder
        log.info("Done: %s holds checkpoints and evaluations; curves: tensorboard --logdir %s", folder, folder)
        return self.last_evaluation.get(self.checkpoints.metric)

    def leave(self, number: int = 0) -> None:
        """Save, and hand the signal on; returns where the handler that was there before wants to go on.

        Args:
            number: The signal, where it may have reached another process alone.
        """
        if self.cadence.save_checkpoint and self.saved != self.step:
            self.save()
        self.interrupts.pending = self.interrupts.pending or number or None
        self.interrupts.reraise()
        self.ranks.wait_for_main()

    def due(self, freq: int) -> bool:
        """Whether something that happens every `freq` updates happens after this one."""
        return freq > 0 and self.step % freq == 0

    def saves(self) -> bool:
        """Whether this step is saved; the last one always is."""
        return self.cadence.save_checkpoint and (self.due(self.cadence.save_freq) or self.step == self.steps)

    def evaluates(self) -> bool:
        """Whether this step is evaluated; the last one is, unless evaluation is off."""
        if self.evaluator is None or self.cadence.eval_freq <= 0 or self.step == 0:
            return False
        return self.due(self.cadence.eval_freq) or self.step == self.steps

    def acting(self) -> Policy:
        """The policy that acts: the average of weights where there is one."""
        return cast(Policy, self.ema.model) if self.ema else self.policy

    def exploring(self) -> Agent:
        """What collects episodes."""
        acting, graph = self.acting().eval(), self.cuda_graph
        return Agent(acting, self.normalizer, self.device, self.amp_dtype, self.told, explore=True, cuda_graph=graph)

    def interrupted(self) -> bool:
        """Whether a signal asks the run to leave."""
        return self.interrupts.pending is not None

    def models(self) -> dict[str, nn.Module]:
        """The modules that act, as they are saved."""
        return {"policy": self.acting(), "normalizer": self.normalizer}

    def autocast(self) -> Any:
        """The precision of the forward pass."""
        if self.amp_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def progress_bar(self) -> tqdm:
        """Steps done, rate, time left, loss and data wait; lines every half minute where there is no terminal."""
        interval = 0.1 if sys.stderr.isatty() else 30.0
        return tqdm(
            total=self.steps,
            initial=self.step,
            unit="step",
            mininterval=interval,
            dynamic_ncols=True,
            disable=not self.ranks.is_main_process,
        )


def _hyperparameters(run: Run) -> dict[str, bool | int | float | str]:
    """What tells this run from others, as TensorBoard takes it."""
    leaves = run.hyperparameters or flatten(run.config)
    return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in leaves.items()}
