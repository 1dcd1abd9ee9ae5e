"""Read the command line, compose every job's configuration by Hydra's own loader, and run what was composed.

Hydra creates folders before it reports a mistake, and ends with status 1. So everything is composed and checked here
first, and every mistake becomes one sentence. A single run then runs the configuration that was checked; the jobs of a
sweep are composed again by Hydra, where its launcher starts them. The one module that imports Hydra's internals.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf, flag_override
from tqdm import tqdm

from robolearn.config.messages import Sources, about, check_overrides, explain
from robolearn.config.schema import drop_shadowed_nodes
from robolearn.errors import UserError, did_you_mean
from robolearn.system.paths import conf_dir

MAX_JOBS = 10_000
"""Of a sweep: each is composed and checked before the first one starts."""

BASIC_SWEEPER = f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}"


@dataclass(frozen=True)
class Job:
    """One run as composed: `cfg` without the key ``hydra``, fully resolved; `folder` is where it will write."""

    cfg: DictConfig
    composed: DictConfig  # with the key hydra, as Hydra's loader made it
    folder: Path
    overrides: list[str]
    sources: Sources
    number: int | None = None  # in a sweep
    is_remote: bool = False  # a launcher may start it on another machine, so this one's devices tell nothing
    launcher: dict[str, Any] = field(default_factory=dict)  # the keys of its file
    sweeper: str = BASIC_SWEEPER  # what chooses the jobs of a sweep


@dataclass(frozen=True)
class CommandLine:
    """What was typed, in Hydra's terms."""

    args: argparse.Namespace
    config_name: str
    overrides: list[str] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)

    @property
    def argv(self) -> list[str]:
        """The same with every option before every override, the one order that Hydra's parser takes."""
        rest = [text for text in self.overrides if text in self.typed]
        flags = []
        for text in reversed(self.typed):
            if rest and text == rest[-1]:
                rest.pop()
            else:
                flags.insert(0, text)
        return [*flags, *self.overrides]

    @property
    def shows_only(self) -> bool:
        """Whether Hydra answers a question instead of running anything."""
        args = self.args
        return bool(args.cfg or args.hydra_help or args.info or args.shell_completion or args.experimental_rerun)


def parse(argv: Sequence[str], config_name: str) -> CommandLine:
    """The command line, by Hydra's own parser.

    Raises:
        UserError: An option or folder that there is not.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UserError(f"The command line was not understood: {message}; see --help.")

    parser.error = refuse  # type: ignore[method-assign]
    args, unknown = parser.parse_known_intermixed_args(list(argv))
    if unknown:
        first = unknown[0]
        if first.startswith("--") and "." in first or "=" in first:
            bare = first.lstrip("-")
            raise UserError(
                f"{first}: keys are written without dashes here: {bare if '=' in bare else bare + '=VALUE'}.", key=first
            )
        flags = [flag for action in parser._actions for flag in action.option_strings]
        raise UserError(f"{first}: there is no such option{did_you_mean(first, flags)}; see --help.", key=first)
    if args.config_path:
        raise UserError(
            "--config-path would hide the files that come with robolearn; add a folder of your own with --config-dir.",
            key="--config-path",
        )
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise UserError(f"--config-dir {args.config_dir}: there is no such folder.", key="--config-dir")
    modes = [bool(args.run), bool(args.multirun), bool(args.cfg), bool(args.info), bool(args.shell_completion)]
    if sum(modes) > 1:
        raise UserError("Give only one of --run, --multirun, --cfg, --info and --shell-completion.")
    return CommandLine(args, args.config_name or config_name, list(args.overrides), list(argv))


def with_run_names(line: CommandLine) -> CommandLine:
    """The same sweep with its runs named by what tells them apart: Hydra gets the keys they share."""
    key = "hydra.job.config.override_dirname.exclude_keys"
    try:
        parsed = OverridesParser.create().parse_overrides(line.overrides)
    except HydraException:  # reported when it is composed
        return line
    if not line.args.multirun or any(override.get_key_element().lstrip("+") == key for override in parsed):
        return line
    shared = [override for override in parsed if not (override.is_sweep_override() or override.is_hydra_override())]
    names = sorted({override.get_key_element().lstrip("+~") for override in shared})
    return replace(line, overrides=[*line.overrides, f"{key}=[{','.join(map(repr, names))}]"])


@contextmanager
def _hydra(line: CommandLine, task: str) -> Iterator[Hydra]:
    """Hydra over our folder and the user's, initialised as `hydra.main` would, and gone afterwards."""
    setbase("1.3")
    search = create_config_search_path(str(conf_dir()))
    if line.args.config_dir:
        anchor = SearchPathQuery(provider="schema")
        search.prepend(provider="command-line", path=f"file://{Path(line.args.config_dir).resolve()}", anchor=anchor)
    before = HydraConfig.instance().cfg
    GlobalHydra.instance().clear()
    try:
        composer = Hydra.create_main_hydra2(task, search)
        drop_shadowed_nodes()
        yield composer
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = before


def compose(line: CommandLine, task: str) -> list[Job]:
    """Every job that this command line starts, composed and resolved; nothing is built or written.

    Args:
        line: The command line.
        task: Hydra's name of the program, as in ``hydra.job.name``.

    Raises:
        UserError: A mistake, in one sentence.
    """
    with _hydra(line, task) as composer:
        sources = Sources(composer.config_loader, line.config_name)
        with _explained(sources, line.overrides):
            check_overrides(sources, line.overrides)
        master = _load(composer, sources, line.overrides, RunMode.MULTIRUN if _sweeps(composer, line) else RunMode.RUN)
        _check_launcher(master, sources, line)
        if not _sweeps(composer, line):
            return [_job(master, sources, line.overrides, number=None)]
        if any(text.split("=")[0].lstrip("+") == "output_dir" for text in line.overrides):
            raise UserError(
                "output_dir= has no effect with --multirun; give the sweep's folder with hydra.sweep.dir=.",
                key="output_dir",
            )
        jobs = []
        HydraConfig.instance().set_config(master)
        with _explained(sources, line.overrides):
            str(master.hydra.sweep.dir)  # resolved before its cache is copied: one time stamp for the whole sweep
        splits = _split(composer, master, sources, line)
        for number, overrides in enumerate(tqdm(splits, "composing", unit="job", delay=2, disable=None, leave=False)):
            own = [str(text) for text in master.hydra.overrides.hydra] + overrides
            with _explained(sources, own):
                check_overrides(sources, own)
            cfg = _load(composer, sources, own, RunMode.RUN)
            OmegaConf.copy_cache(from_config=master, to_config=cfg)
            if cfg.hydra.runtime.choices["hydra/launcher"] != master.hydra.runtime.choices["hydra/launcher"]:
                raise _misplaced_launcher(sources, own)
            jobs.append(_job(cfg, sources, own, number))
            if jobs[-1].folder in [job.folder for job in jobs[:-1]]:
                raise UserError(f"The sweep has a run twice: {' '.join(overrides)}; give every value once.")
        return jobs


def run(line: CommandLine, jobs: Sequence[Job], config_name: str, function: Callable[[DictConfig], Any]) -> None:
    """Run the one job that was composed; leave sweeps, and questions about the configuration, to Hydra.

    Args:
        line: The command line.
        jobs: What `compose` made of it.
        config_name: The entry point's primary configuration.
        function: Runs a job, given its configuration without the key ``hydra``.
    """
    if line.shows_only or jobs[0].number is not None:
        sys.argv[1:] = line.argv
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=config_name)(function)()
        return
    # As Hydra's own run does, apart from composing.
    (job,) = jobs
    cfg, callbacks = job.composed, Callbacks(job.composed)
    callbacks.on_run_start(config=cfg, config_name=line.config_name)
    context = HydraContext(config_loader=job.sources.loader, callbacks=callbacks)
    done = run_job(function, cfg, "hydra.run.dir", None, context)
    callbacks.on_run_end(config=cfg, config_name=line.config_name, job_return=done)
    _ = done.return_value  # raises what the job raised


def _misplaced_launcher(sources: Sources, overrides: list[str]) -> UserError:
    file = sources.naming(lambda group, option: group == "hydra/launcher", overrides) or "hydra/launcher"
    return UserError(
        f"{file}: Hydra chooses the launcher before it looks at a swept experiment, so hydra/launcher is given on the "
        "command line only: remove it from the file and add hydra/launcher=NAME to the command.",
        key="hydra/launcher",
    )


def _sweeps(composer: Hydra, line: CommandLine) -> bool:
    if line.args.multirun:
        return True
    mode = (
        None
        if line.args.cfg or line.args.info
        else composer.get_mode(config_name=line.config_name, overrides=line.overrides)
    )
    return mode == RunMode.MULTIRUN


def _check_launcher(master: DictConfig, sources: Sources, line: CommandLine) -> None:
    typed = [text for text in line.overrides if text.startswith(("hydra/launcher=", "+hydra/launcher="))]
    if not typed and master.hydra.runtime.choices["hydra/launcher"] != "basic":
        raise _misplaced_launcher(sources, line.overrides)
    if typed and not (line.args.multirun or line.args.cfg or master.hydra.mode == RunMode.MULTIRUN):
        raise UserError(f"{typed[0]} has an effect with --multirun only: add -m.", key="hydra/launcher")


@contextmanager
def _explained(sources: Sources, overrides: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = explain(error, sources, overrides)
        if message is None:
            raise
        raise UserError(message, key=about(message)) from error


def _load(composer: Hydra, sources: Sources, overrides: list[str], mode: RunMode) -> DictConfig:
    with _explained(sources, overrides):
        return composer.config_loader.load_configuration(sources.config_name, overrides, run_mode=mode)


def _split(composer: Hydra, master: DictConfig, sources: Sources, line: CommandLine) -> list[list[str]]:
    """The overrides of every job of a sweep; of a sampling sweeper one job, with all first values."""
    task = [str(text) for text in master.hydra.overrides.task]
    sweeper = master.hydra.sweeper
    params: Any = OmegaConf.select(master, "hydra.sweeper.params") or {}
    texts = [f"{key}={value}" for key, value in params.items()] + task
    with _explained(sources, texts):
        parsed = OverridesParser.create(config_loader=composer.config_loader).parse_overrides(texts)
        if sweeper._target_ == BASIC_SWEEPER:
            _check_size(parsed)
            return grid(parsed)
    return [[_first(override) if override.is_sweep_override() else override.input_line or "" for override in parsed]]


def grid(overrides: list[Override]) -> list[list[str]]:
    """The overrides of every job of a sweep over all combinations, in Hydra's order."""
    return [list(job) for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def _check_size(overrides: list[Override]) -> None:
    """Refuse a sweep of no jobs, or of more than can be checked, before its jobs are listed."""
    jobs = 1
    for override in overrides:
        if not override.is_discrete_sweep():
            continue
        values = sum(1 for _ in islice(override.sweep_string_iterator(), MAX_JOBS + 1))
        key = override.get_key_element()
        if not values:
            raise UserError(f"{override.input_line}: there is no value to sweep over; give one or more.", key=key)
        jobs *= values
        if jobs > MAX_JOBS:
            raise UserError(
                f"{override.input_line}: the sweep has more than {MAX_JOBS:,} jobs",
                key=key,
                fix="sweep over fewer values",
            )


def _first(override: Override) -> str:
    value = override.value()
    text = str(value.start) if isinstance(value, IntervalSweep) else next(override.sweep_string_iterator())
    return f"{override.get_key_element()}={text}"


def _job(cfg: DictConfig, sources: Sources, overrides: list[str], number: int | None) -> Job:
    with _explained(sources, overrides), flag_override(cfg, ["readonly", "struct"], False):
        if number is None:
            cfg.hydra.mode = RunMode.RUN
        else:
            cfg.hydra.job.num = number
            cfg.hydra.job.id = str(number)
        HydraConfig.instance().set_config(cfg)
        folder = Path(cfg.hydra.run.dir)
        if number is not None:
            folder = Path(cfg.hydra.sweep.dir) / str(cfg.hydra.sweep.subdir)
        with flag_override(cfg.hydra, ["readonly", "struct"], False):
            cfg.hydra.runtime.output_dir = str(folder.absolute())
        HydraConfig.instance().set_config(cfg)
        task = copy.deepcopy(cfg)
        with flag_override(task, ["readonly", "struct"], False):
            del task["hydra"]
        missing = sorted(OmegaConf.missing_keys(task))
        if missing:
            raise UserError(f"{missing[0]} has no value yet; give it with {missing[0]}=VALUE.", key=missing[0])
        OmegaConf.resolve(task)
        launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    elsewhere = cfg.hydra.runtime.choices["hydra/launcher"] != "basic"
    return Job(task, cfg, folder, overrides, sources, number, elsewhere, launcher, str(cfg.hydra.sweeper._target_))
