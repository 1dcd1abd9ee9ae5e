"""``robolearn-eval``: the simulator and evaluation of a checkpoint's run, under Hydra's grammar, once more."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from robolearn.checkpoints.locate import is_lerobot_checkpoint, locate, policy_node, read_run
from robolearn.cli.entry import entry_point, exit_with
from robolearn.config.compose import CommandLine, Job, compose, parse, run
from robolearn.config.schema import EvaluateConfig
from robolearn.errors import UserError
from robolearn.system.paths import conf_dir

log = logging.getLogger(__name__)

KEPT = ("seed", "device", "use_amp", "amp_dtype", "job_name")


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """The entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    line = parse(arguments, "evaluate")
    if line.args.help:
        from robolearn.cli import help as texts

        print(texts.evaluate(line.args.config_dir), end="")
        return
    jobs: list[Job] = []
    if line.args.shell_completion or line.args.hydra_help:
        register({})
    else:
        register(read_config(_checkpoint(line)))
        jobs = compose(line, "evaluate")
        if not line.shows_only:
            check(jobs)
    run(line, jobs, "evaluate", run_job)


def register(config: Mapping[str, Any]) -> None:
    """Make a run's configuration the defaults of ``evaluate.yaml``."""
    store = ConfigStore.instance()
    values = {key: config[key] for key in KEPT if key in config}
    store.store(name="checkpoint_values", node=values, package="_global_", provider="checkpoint")
    for group in ("env", "eval", "policy"):
        node = {group: config.get(group)}
        store.store(group=group, name="checkpoint", node=node, package="_global_", provider="checkpoint")


def _checkpoint(line: CommandLine) -> Path:
    """The folder of the checkpoint on the command line, with its ``config.yaml``.

    Raises:
        UserError: None is given, or it is nowhere to be found.
    """
    given: dict[str, Any] = {}
    for text in line.overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:  # reported when everything is composed
            continue
        if override.key_or_group == "checkpoint" and override.is_sweep_override():
            raise UserError(
                f"{text}: one checkpoint at a time, because its run decides the defaults of the others.",
                key="checkpoint",
            )
        given[override.key_or_group] = override.value()
    path = given.get("checkpoint")
    if not path:
        raise UserError(
            "checkpoint: it is missing; write robolearn-eval checkpoint=FOLDER_OR_HUB_ID.", key="checkpoint"
        )
    if given.get("policy", "checkpoint") != "checkpoint":
        raise UserError(
            f"policy={given['policy']}: the checkpoint decides the policy; change keys with policy.KEY=VALUE.",
            key="policy",
        )
    return locate("checkpoint", str(path), given.get("download") is True)


def read_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of its policy, and where ours tell them, of the run's simulator and evaluation.

    Raises:
        UserError: A file beside the weights is not readable, or of a policy that is not supported.
    """
    if is_lerobot_checkpoint(folder):
        evaluation = yaml.safe_load((conf_dir() / "eval" / "default.yaml").read_text())
        return {"policy": policy_node(folder), "eval": evaluation, "job_name": folder.name}
    return read_run(folder)


def check(jobs: Sequence[Job]) -> None:
    """Check every job's keys, types, device, simulator and checkpoint before anything is written.

    Raises:
        UserError: The first mistake.
    """
    import torch

    from robolearn.checkpoints.load import PretrainedCheckpoint
    from robolearn.config.build import build, build_policy
    from robolearn.config.devices import pick_device
    from robolearn.config.preflight import check_values
    from robolearn.envs import check_same_spec

    for job in jobs:
        cfg = job.cfg
        check_values(job, EvaluateConfig)
        if not job.is_remote:
            pick_device(cfg.device)
        if cfg.env is None:
            raise UserError("env: this checkpoint's run had no simulator; choose one with env=NAME.", key="env")
        start = PretrainedCheckpoint(locate("checkpoint", cfg.checkpoint, cfg.download))
        simulator = build("env", cfg)
        spec = start.spec(simulator.spec.fps)
        check_same_spec(spec, simulator.spec)
        build("eval", cfg, env=simulator)
        with torch.device("meta"):
            start.check(build_policy(cfg, spec))


def run_job(cfg: DictConfig) -> float | None:
    """One evaluation; returns its success rate for sweepers."""
    try:
        return _evaluate(cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        exit_with(error)


def _evaluate(cfg: DictConfig) -> float | None:
    from robolearn.agent import AgentFactory
    from robolearn.checkpoints.load import PretrainedCheckpoint
    from robolearn.config.build import AMP, build, load_policy
    from robolearn.config.devices import pick_acting_graph, pick_compile, pick_device, use_fast_kernels
    from robolearn.rollouts.task_prompts import task_prompts

    device = pick_device(cfg.device)
    folder = Path(HydraConfig.get().runtime.output_dir)
    checkpoint = locate("checkpoint", cfg.checkpoint, cfg.download)
    if cfg.tokenizer is not None and "tokenizer" in cfg.policy:
        cfg.policy.tokenizer = cfg.tokenizer
    use_fast_kernels(device)
    policy, normalizer = load_policy(checkpoint, device, cfg)
    evaluator = build("eval", cfg, env=build("env", cfg))
    words = task_prompts(policy, evaluator, PretrainedCheckpoint(checkpoint).spec().tasks)
    make_agent = AgentFactory(
        normalizer,
        device,
        AMP[cfg.amp_dtype] if cfg.use_amp else None,
        words,
        cuda_graph=pick_acting_graph(cfg.cuda_graph, device, policy),
        compile=pick_compile(cfg.compile, device),
    )
    result = evaluator(make_agent(policy), folder)
    width = max(map(len, result.scalars), default=0)
    for name, value in result.scalars.items():
        print(f"{name:<{width}}  {value:.4g}")
    print(f"Videos and eval.json are in {folder}.")
    return result.scalars.get("success_rate")


if __name__ == "__main__":
    main()
