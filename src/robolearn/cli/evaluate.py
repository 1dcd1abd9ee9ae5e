"""``robolearn-eval``: the simulator and evaluation of a checkpoint's run, under Hydra's grammar, once more."""

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from robolearn.cli.compose import CommandLine, Job, compose, exit_with, parse
from robolearn.config import conf_dir
from robolearn.errors import UserError

log = logging.getLogger(__name__)

KEPT = ("seed", "device", "use_amp", "amp_dtype", "job_name")


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point; a mistake of the user's is one sentence on stderr and status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        line = parse(arguments, "evaluate")
        if line.args.help:
            from robolearn.cli import help as texts

            print(texts.evaluate(line.args.config_dir), end="")
            return
        if line.args.shell_completion or line.args.hydra_help:
            register({})
        else:
            register(read_config(_checkpoint(line)))
            jobs = compose(line, "evaluate")
            if not line.shows_only:
                check(jobs)
    except UserError as error:
        exit_with(error)
    sys.argv[1:] = line.argv
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="evaluate")(run_job)()


def register(config: Mapping[str, Any]) -> None:
    """Make a run's configuration the defaults of ``evaluate.yaml``."""
    store = ConfigStore.instance()
    values = {key: config[key] for key in KEPT if key in config}
    store.store(name="checkpoint_values", node=values, package="_global_", provider="checkpoint")
    for group in ("env", "eval"):
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
        except HydraException:  # told when everything is composed
            continue
        if override.key_or_group == "checkpoint" and override.is_sweep_override():
            raise UserError(f"{text}: one checkpoint at a time, because its run decides the defaults of the others.")
        given[override.key_or_group] = override.value()
    path = given.get("checkpoint")
    if not path:
        raise UserError("checkpoint: it is missing; write robolearn-eval checkpoint=FOLDER_OR_HUB_ID.")
    return locate(str(path), given.get("download") is True)


def locate(path: str, download: bool) -> Path:
    """The folder that holds the weights of what ``checkpoint=`` names; no checksum is looked at.

    Args:
        path: A run's folder, one of its checkpoints, or a hub id.
        download: Whether a hub id may be fetched.

    Raises:
        UserError: There is no such folder, or nothing in it.
    """
    given = Path(path).expanduser()
    if not given.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        given = _from_hub(path, download)
    for folder in (given, given / "last", given / "checkpoints" / "last"):
        if (folder / "model.safetensors").is_file() and (folder / "config.yaml").is_file():
            return folder.resolve()
    if not given.exists():
        raise UserError(f"checkpoint={path}: there is no such folder; give a run's folder or one of its checkpoints.")
    if (given / "config.yaml").is_file() and (given / "run.json").is_file():
        raise UserError(f"checkpoint={path}: this run has saved no checkpoint yet.")
    raise UserError(
        f"checkpoint={path}: no checkpoint is in this folder; give a run's folder or one of its checkpoints."
    )


def _from_hub(name: str, download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=not download))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError) as error:
        if not download:
            raise UserError(
                f"checkpoint={name}: there is no such folder, nor has it been fetched from the Hugging Face hub; "
                "give a folder, or add download=true."
            ) from error
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"checkpoint={name}: it could not be fetched from the Hugging Face hub: {reason}.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration beside a checkpoint.

    Raises:
        UserError: It is not one of a run.
    """
    file = folder / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: this is not readable YAML; use another checkpoint of the run.") from error
    if not isinstance(config, dict) or "policy" not in config:
        raise UserError(f"{file}: this is no configuration of a run; use another checkpoint.")
    return config


def check(jobs: Sequence[Job]) -> None:
    """Check every job's keys, types, device, simulator and checkpoint before anything is written.

    Raises:
        UserError: The first mistake.
    """
    from robolearn.checkpoint import load_spec, sound
    from robolearn.cli.build import AMP, build, check_one_of, check_targets_of, pick_device
    from robolearn.envs import check_same_spec

    for job in jobs:
        cfg = job.cfg
        check_targets_of(job)
        check_one_of("amp_dtype", cfg.amp_dtype, AMP)
        if not job.elsewhere:
            pick_device(cfg.device)
        if cfg.env is None:
            raise UserError("env: this checkpoint's run had no simulator; choose one with env=NAME.")
        spec = load_spec(sound(locate(cfg.checkpoint, cfg.download)))
        simulator = build("env", cfg)
        check_same_spec(spec, simulator.spec)
        build("eval", cfg, env=simulator)


def run_job(cfg: DictConfig) -> float | None:
    """One evaluation; returns its success rate for sweepers."""
    try:
        return _evaluate(cfg)
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        exit_with(error)


def _evaluate(cfg: DictConfig) -> float | None:
    from robolearn.agent import Agent
    from robolearn.checkpoint import load_spec, sound
    from robolearn.cli.build import AMP, build, load_policy, pick_device
    from robolearn.tasks import told

    device = pick_device(cfg.device)
    folder = Path(HydraConfig.get().runtime.output_dir)
    checkpoint = sound(locate(cfg.checkpoint, cfg.download))
    policy, normalizer = load_policy(checkpoint, device, cfg.tokenizer)
    evaluator = build("eval", cfg, env=build("env", cfg))
    words = told(policy, evaluator, load_spec(checkpoint).tasks)
    agent = Agent(policy, normalizer, device, AMP[cfg.amp_dtype] if cfg.use_amp else None, words)
    result = evaluator(agent, folder)
    width = max(map(len, result.scalars), default=0)
    for name, value in result.scalars.items():
        print(f"{name:<{width}}  {value:.4g}")
    print(f"Videos and eval.json are in {folder}.")
    return result.scalars.get("success_rate")


if __name__ == "__main__":
    main()
