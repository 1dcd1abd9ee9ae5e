"""The training loop: runs the offline, then the online phase; logs, saves and evaluates until the last update."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from robolearn import rng
from robolearn.agent import AgentFactory
from robolearn.checkpoints.store import Checkpoints, load_models, load_state, load_trained
from robolearn.distributed.world import World
from robolearn.episodes import RolloutInterrupted
from robolearn.normalize import Normalizer
from robolearn.policies.base import Policy
from robolearn.runs.logger import Logger
from robolearn.runs.run import Run
from robolearn.training.intervals import Intervals
from robolearn.training.metrics import TrainMetrics
from robolearn.training.phases import Phase, Rollout
from robolearn.training.signals import GracefulShutdown
from robolearn.training.state import RngState, TrainState
from robolearn.training.update import Update

log = logging.getLogger(__name__)


@dataclass
class Trainer:
    """Trains a policy and leaves checkpoints, evaluations and curves in its run's folder.

    Args:
        update: Trains the policy on the batches of one update.
        phases: What the updates train on, in order: the offline, then the online phase.
        intervals: When to log, evaluate and save.
        run: The run's folder and status.
        logger: Curves.
        checkpoints: Where the run is saved.
        init_weights: Fills policy and normalizer before the first update of a fresh run.
        make_agent: Makes the agent that an evaluation runs.
        evaluator: Runs episodes of a simulator, see `robolearn.rollouts.evaluation.Evaluator`; None: there is none.
        world: The processes that train the policy together, each on its shard of every batch. The main process alone
            writes and evaluates.
    """

    update: Update
    phases: Sequence[Phase]
    intervals: Intervals
    run: Run
    logger: Logger
    checkpoints: Checkpoints
    init_weights: Callable[[Policy, Normalizer], None]
    make_agent: AgentFactory
    evaluator: Callable[..., Any] | None = None
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        self.step, self.end_step = 0, self.phases[-1].end_step
        self.saved_step = -1  # of the newest checkpoint
        self.scalars: dict[str, float] = {}
        self.last_evaluation: dict[str, float] = {}
        self.metrics = TrainMetrics(self.update.device, self.world)
        self.rng = RngState(self.world, self.update.device)
        collected = {name: part for phase in self.phases for name, part in phase.parts().items()}
        parts = {"trainer": self, **self.update.parts(), "metrics": self.metrics, **collected, "rng": self.rng}
        # A run may be given its online phase when it is resumed.
        self.state = TrainState(parts, may_be_new=collected)

    def train(self) -> float | None:
        """Run to the last update; returns the last value of the checkpoints' metric, which sweeps read."""
        with self.session() as stack:
            self.restore_or_init()
            self.bar = stack.enter_context(self.progress_bar())
            self.metrics.start()
            for phase in self.phases:  # offline, then online
                with closing(phase.updates(self.step, self.run_rollout)) as updates:
                    for batches in self.metrics.time_data(updates):
                        scalars = self.update(batches, self.step)
                        self.metrics.add(sum(len(batch["index"]) for batch in batches), scalars)
                        self.step += 1
                        self.log_save_evaluate()
            return self.finish()

    @contextmanager
    def session(self) -> Iterator[ExitStack]:
        """Hold the run's status and its signal handlers; at the end simulators and curves are closed."""
        with self.run.running(), GracefulShutdown() as self.interrupts, ExitStack() as stack:
            stack.callback(self.logger.close)
            for phase in self.phases:
                stack.callback(phase.close)
            yield stack

    def log_save_evaluate(self) -> None:
        """What follows an update, where it is due."""
        self.run.step = self.step
        self.bar.update()
        if self.intervals.is_due(self.intervals.log_freq, self.step):
            self.scalars |= self.read_metrics()
            self.bar.set_postfix_str(self.metrics.text(self.scalars))
        if self.intervals.should_save(self.step, self.end_step):
            self.save()
        self.evaluate_and_log()
        # Processes that train together stop at the same step, whichever of them got the signal.
        if number := self.world.poll_max(self.interrupts.pending or 0):
            self.save_and_exit(number)

    def evaluate_and_log(self) -> None:
        """Evaluate where it is due, and write the step's scalars; may be done again after a restart."""
        while self.should_evaluate():
            evaluated = self.world.run_on_main(self.evaluate)
            if evaluated is not None:
                self.last_evaluation = evaluated
                self.scalars |= {f"eval/{name}": value for name, value in evaluated.items()}
                self.metrics.start()
                break
            self.save_and_exit()  # a restart evaluates this step again, and so does a resumed run
        if self.step >= self.end_step:
            for phase in self.phases:
                phase.finish(self.step, self.run_rollout)
        if self.scalars:
            self.logger.scalars(self.step, self.scalars)
            self.scalars = {}

    def evaluate(self) -> dict[str, float] | None:
        """Run episodes with the weights that act, None if a signal stops it; the randomness of training stays."""
        assert self.evaluator
        folder = self.run.folder / "eval" / f"{self.step:08d}"
        try:
            with rng.unsharded():
                result = self.evaluator(self.make_agent(self.update.eval_policy), folder, stop=self.is_interrupted)
        except RolloutInterrupted:
            return None
        shown = ", ".join(f"{name} {value:.3g}" for name, value in result.scalars.items())
        log.info("Evaluated step %d: %s; videos in %s.", self.step, shown, folder)
        self.checkpoints.record_metrics(self.step, result.scalars)
        if result.video is not None:
            self.logger.video(self.step, "eval/video", result.video, result.fps)
        return result.scalars

    def run_rollout(self, rollout: Rollout) -> None:
        """Run a rollout, whose scalars become the step's; its time is not training's."""
        while True:
            try:
                with self.metrics.exclude():
                    self.scalars |= rollout(self.is_interrupted)
                return
            except RolloutInterrupted:
                self.save_and_exit()  # a restart collects it again, and so does a resumed run

    def read_metrics(self) -> dict[str, float]:
        """Means over the updates since the last call; the one place that synchronises with the device."""
        scalars = self.metrics.read(self.step)
        scalars |= {f"train/lr/{name}": rate for name, rate in self.update.learning_rates().items()}
        if self.update.device.type == "cuda":
            scalars["train/gpu_memory_gb"] = torch.cuda.max_memory_allocated(self.update.device) / 1e9
        return scalars

    def save(self) -> None:
        """Write a checkpoint of everything that the coming steps depend on; this step's evaluation comes after it."""
        self.metrics.check_finite(self.step)
        modules, state = self.update.modules_to_save(), self.state.state_dict()
        self.world.run_on_main(partial(self.checkpoints.save, self.step, modules, self.update.policy, state))
        self.checkpointed()

    def restore_or_init(self) -> None:
        """Resume from the newest sound checkpoint, or start a fresh run."""
        folder = self.world.run_on_main(self.checkpoints.latest)
        if folder is not None:
            self.resume(folder)
            return
        self.logger.truncate_after(-1)
        self.update.init_weights(self.init_weights)
        for phase in self.phases:
            phase.clear()
        self.logger.text("config", self.checkpoints.config)
        self.rng.shard()

    def resume(self, folder: Path) -> None:
        """Restore a checkpoint; what its run was still to do or to write for its step is done now."""
        load_models(folder, self.update.modules_to_save())
        load_trained(folder, self.update.policy)
        self.state.load_state_dict(load_state(folder))
        self.run.step = self.run.first_step = self.step
        self.checkpointed()
        log.info("Resumed from %s at step %d.", folder, self.step)
        written = self.world.run_on_main(partial(self.logger.truncate_after, self.step))
        if written is None:
            self.evaluate_and_log()
            return
        self.scalars = {}
        if self.should_evaluate():
            self.last_evaluation = {k.removeprefix("eval/"): v for k, v in written.items() if k.startswith("eval/")}

    def checkpointed(self) -> None:
        """The run's state is that of this step's checkpoint."""
        self.saved_step = self.step
        for phase in self.phases:
            phase.checkpointed(self.step, self.checkpoints.steps())

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, and what of this step is not written yet."""
        return {"step": self.step, "scalars": self.scalars, "last_evaluation": self.last_evaluation}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Restore a state."""
        self.step, self.scalars, self.last_evaluation = state["step"], state["scalars"], state["last_evaluation"]

    def finish(self) -> float | None:
        """Report the run's result; returns the last value of the checkpoints' metric."""
        self.metrics.check_finite(self.step)
        # TensorBoard looks their values up among the scalars of these names.
        metrics = {f"eval/{name}": value for name, value in self.last_evaluation.items()}
        self.logger.hparams(self.run.hparams(), metrics)
        if found := self.checkpoints.best_or_last():
            self.logger.model(found)
        log.info("Done: %s has checkpoints and evaluations; curves: tensorboard --logdir %s", *[self.run.folder] * 2)
        return self.last_evaluation.get(self.checkpoints.metric)

    def save_and_exit(self, number: int = 0) -> None:
        """Save, and hand the signal on; returns where the handler that was there before lets the run go on.

        Args:
            number: The signal, where it may have reached another process alone.
        """
        if self.intervals.save_checkpoint and self.saved_step != self.step:
            self.save()
        self.interrupts.pending = self.interrupts.pending or number or None
        self.interrupts.reraise()
        self.world.wait_for_main()

    def should_evaluate(self) -> bool:
        """Whether this step is evaluated."""
        return self.evaluator is not None and self.intervals.should_evaluate(self.step, self.end_step)

    def is_interrupted(self) -> bool:
        """Whether a signal asks the run to end."""
        return self.interrupts.pending is not None

    def progress_bar(self) -> tqdm:
        """Steps done, rate, time left, loss and data wait; lines every half minute where there is no terminal."""
        interval, hide = 0.1 if sys.stderr.isatty() else 30.0, not self.world.is_main_process
        return tqdm(
            total=self.end_step, initial=self.step, unit="step", mininterval=interval, dynamic_ncols=True, disable=hide
        )
