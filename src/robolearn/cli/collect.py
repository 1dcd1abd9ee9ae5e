"""``robolearn-collect``: demonstrations, or episodes of a policy, become a dataset."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from robolearn import __version__
from robolearn.cli.entry import entry_point, exit_with
from robolearn.config.compose import Job, compose, parse, run
from robolearn.config.schema import CollectConfig
from robolearn.errors import UserError
from robolearn.types import Depth

log = logging.getLogger(__name__)

PACKAGES = ("gymnasium", "gym-pusht", "pymunk", "gym-aloha", "gym-xarm", "mujoco", "dm-control", "numpy", "av")


@dataclass(frozen=True)
class PolicyOptions:
    """Which policy acts in place of the demonstrator.

    Args:
        path: A run's folder, one of its checkpoints, or a hub id; None for the demonstrator.
        batch_size: Simulators side by side.
        use_async_envs: Give each simulator a process of its own.
    """

    path: str | None = None
    batch_size: Depth = 10
    use_async_envs: bool = False


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """The entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    line = parse(arguments, "collect")
    if line.args.help:
        from robolearn.cli import help as texts

        print(texts.collect(line.args.config_dir), end="")
        return
    composes = line.args.cfg or line.args.info or not line.shows_only
    jobs = compose(line, "collect") if composes else []
    if not line.shows_only:
        for job in jobs:
            check(job)
    run(line, jobs, "collect", run_job)


def check(job: Job) -> None:
    """Check keys, values, simulator and folder before anything is written.

    Raises:
        UserError: The first mistake.
    """
    from robolearn.collecting.collection import check_folder
    from robolearn.config.build import build
    from robolearn.config.preflight import check_values

    cfg = job.cfg
    check_values(job, CollectConfig)
    if cfg.env is None:
        raise UserError("env: there is no simulator to collect in; choose one with env=NAME.", key="env")
    if cfg.policy.path is None and cfg.demonstrator is None:
        raise UserError(
            "demonstrator: this env has none; choose one with demonstrator=NAME, or give policy.path=CHECKPOINT.",
            key="demonstrator",
        )
    simulator = build("env", cfg)
    recorder = make_recorder(cfg, simulator)
    check_images(simulator, recorder)
    check_folder(Path(cfg.out).expanduser(), make_recipe(cfg, simulator))


def make_recorder(cfg: DictConfig, simulator: Any) -> Any:
    """What turns the simulator's episodes into records.

    Raises:
        UserError: The codec's options can't be right.
    """
    from robolearn.data.lerobot_format.recorder import Recorder
    from robolearn.data.video.encode import VideoEncoder

    task = cfg.instruction or simulator.instruction or simulator.id
    encoder = VideoEncoder(cfg.video_codec, cfg.video_crf) if cfg.video else None
    return Recorder(simulator.spec, task, encoder, cfg.action_label, cfg.action_noise > 0)


def check_images(simulator: Any, recorder: Any) -> None:
    """Refuse images that the codec can't take.

    Raises:
        UserError: It can't.
    """
    for key, feature in simulator.spec.of_kind("VISUAL").items():
        channels, height, width = feature.shape
        if recorder.encoder and (channels != 3 or height % 2 or width % 2):
            raise UserError(
                f"video=true: {key} has {channels} channels of {height} x {width}, but video takes 3 channels of even "
                "height and width; choose another size of observed images in env, or video=false.",
                key="video",
            )


def make_recipe(cfg: DictConfig, simulator: Any) -> dict[str, Any]:
    """What decides the episodes of a dataset; a folder is continued only with the same."""
    from robolearn.config.build import plain

    values = plain(cfg)
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    by_policy = cfg.policy.path is not None
    return {
        "env": {**simulator.describe(), **simulator.render_settings},
        "demonstrator": None if by_policy else values["demonstrator"],
        "policy": {**values["policy"], "path": str(Path(cfg.policy.path).resolve())} if by_policy else None,
        **{key: values[key] for key in ("seed", "keep_failures", "action_noise", "action_label")},
        "video": {"codec": cfg.video_codec, "crf": cfg.video_crf} if cfg.video else None,
        "robolearn": {"version": __version__, "packages": installed},
    }


def run_job(cfg: DictConfig) -> None:
    """One collection; a mistake ends it with one sentence, in a sweep it is raised."""
    try:
        _collect(cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        exit_with(error)


def _collect(cfg: DictConfig) -> None:
    from robolearn.collecting.collection import RECIPE, Collection, folder_of_its_own
    from robolearn.config.build import build
    from robolearn.data.lerobot_format.writer import DatasetWriter
    from robolearn.training.signals import GracefulShutdown

    simulator = build("env", cfg)
    recorder, recipe = make_recorder(cfg, simulator), make_recipe(cfg, simulator)
    out, spec = Path(cfg.out).expanduser(), simulator.spec
    features = recorder.features(simulator.success_key is not None)
    extra = {"settings": spec.settings, RECIPE: recipe}
    with folder_of_its_own(out, recipe):
        writer = DatasetWriter(out, spec.fps, features, robot_type=None, extra=extra)
        collection = Collection(writer, cfg.seed, cfg.episodes, cfg.keep_failures, cfg.patience)
        if collection.missing <= 0:
            print(f"{out} holds {writer.num_episodes} episodes already; give a larger episodes= for more.")
            return
        doing, left = "saving what was recorded", "the same command resumes from what was saved"
        with GracefulShutdown(doing, left) as interrupts:
            outcome = _run(cfg, simulator, recorder, collection, lambda: interrupts.pending is not None)
            _report(out, outcome, cfg)
            interrupts.reraise()


def _run(cfg: DictConfig, simulator: Any, recorder: Any, collection: Any, stop: Any) -> Any:
    """Collect from the demonstrator, or from the policy."""
    if cfg.policy.path is not None:
        return collection.run(_rollouts(cfg, simulator, recorder), stop)
    from robolearn.collecting.demonstration_workers import DemonstrationTask, WorkerPool
    from robolearn.config.build import build
    from robolearn.data.video.decode import cpu_count

    demonstrator = build("demonstrator", cfg)
    demonstration = DemonstrationTask(simulator.env_fn(), demonstrator, recorder, cfg.action_noise, cfg.keep_failures)
    workers = min(cfg.workers or cpu_count(), collection.missing)
    with WorkerPool(demonstration, workers, simulator.preload_modules()) as pool:
        return collection.run(pool, stop)


def _rollouts(cfg: DictConfig, simulator: Any, recorder: Any) -> Any:
    from robolearn.agent import AgentFactory
    from robolearn.checkpoints.load import PretrainedCheckpoint
    from robolearn.checkpoints.locate import locate
    from robolearn.collecting.collection import PolicyEpisodeSource
    from robolearn.config.build import load_policy
    from robolearn.config.devices import pick_device
    from robolearn.envs import check_same_spec

    device = pick_device(cfg.device)
    folder = locate("policy.path", cfg.policy.path)
    check_same_spec(PretrainedCheckpoint(folder).spec(simulator.spec.fps), simulator.spec)
    policy, normalizer = load_policy(folder, device)
    agent = AgentFactory(normalizer, device)(policy)
    options = cfg.policy
    return PolicyEpisodeSource(
        simulator, agent, recorder, options.batch_size, cfg.seed, options.use_async_envs, cfg.action_noise,
        cfg.keep_failures,
    )  # fmt: skip


def _report(out: Path, outcome: Any, cfg: DictConfig) -> None:
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 1e6
    attempts = outcome.episodes + (0 if cfg.keep_failures else outcome.failures)
    kept = "kept too" if cfg.keep_failures else "left out"
    failed = f"{outcome.failures} of {attempts} attempts failed and were {kept}" if outcome.failures else "none failed"
    if not outcome.complete:
        print(f"Stopped with {outcome.episodes} of {cfg.episodes} episodes in {out}; the same command resumes.")
        return
    episodes = f"{outcome.episodes} episode" + "s" * (outcome.episodes != 1)
    print(f"{episodes}, {outcome.frames:,} frames, {size:.1f} MB in {out}; {failed}.")
    print(f"Train on them with robolearn-train dataset.root={out}, look at them with robolearn-dataset show {out}.")


if __name__ == "__main__":
    main()
