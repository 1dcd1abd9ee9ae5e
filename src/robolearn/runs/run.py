"""A run's folder: its configuration, the version of the code, and its status."""

import contextlib
import getpass
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import filelock
import yaml

from robolearn.errors import UserError, with_class
from robolearn.system import slurm
from robolearn.system.files import disk_full_as_user_error, write_json, write_text

log = logging.getLogger(__name__)

State = Literal["running", "interrupted", "finished", "failed"]

# A run may resume with other values of these; any other difference makes it another run.
MUTABLE_KEYS = (
    "offline.steps",
    "online.steps",
    "log_freq",
    "eval_freq",
    "save_freq",
    "save_checkpoint",
    "eval",
    "logger",
    # Where the run lies and whether it is resumed says nothing about what it computes.
    "resume",
    "output_dir",
    "job_name",
    # How updates are launched, not what they compute.
    "compile",
    "cuda_graph",
)
HEARTBEAT_S = 10.0
PACKAGES = ("robolearn", "torch", "torchvision", "hydra-core", "omegaconf", "gymnasium", "gym-pusht", "pymunk")
PACKAGES += ("gym-aloha", "gym-xarm", "mujoco", "diffusers", "transformers", "datasets", "av", "tensorboard")
PACKAGES += ("submitit", "numpy", "wandb")


class Run:
    """The folder of one run and its ``status.json``.

    Args:
        folder: Made if it is not there.
        config: The resolved configuration, in plain containers.
        overrides: What the user gave on the command line.
        writes: False in a process beside the one that tells of the run.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], overrides: Sequence[str], writes: bool = True) -> None:
        self.folder = folder
        self.writes = writes
        self.config = config
        self.overrides = overrides
        self.step = self.first_step = 0  # where it is, and where this process began
        self.steps: int | None = None  # where it ends
        self.device: Mapping[str, str | None] = {}  # what it computes on
        self.hyperparameters: dict[str, Any] = {}  # to compare it by; empty: the whole configuration
        self._since = time.time()
        self._lock = filelock.FileLock(folder / ".lock")
        self._state: State = "running"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run already."""
        return holds_run(self.folder)

    def hparams(self) -> dict[str, bool | int | float | str]:
        """What distinguishes this run from others, as TensorBoard takes it."""
        leaves = self.hyperparameters or flatten(self.config)
        return {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in leaves.items()}

    def check_same(self) -> None:
        """Refuse to resume a run of another configuration.

        Raises:
            UserError: Keys differ that may not; the message names them with both values.
        """
        recorded = yaml.safe_load((self.folder / "config.yaml").read_text())
        if found := differences(recorded, self.config):
            shown = "; ".join(f"{key} was {old}, now {new}" for key, old, new in found[:5])
            raise UserError(
                f"{self.folder} holds a run of another configuration ({shown})",
                key="output_dir",
                fix="give another output_dir, or the same values",
            )

    def record(self) -> None:
        """Write what is needed to know, and to repeat, what ran here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sha, diff = _git(Path(__file__).parent)
        if diff:
            write_text(self.folder / "git.diff", diff)
        content = {
            "command": sys.argv,
            "overrides": list(self.overrides),
            "git_sha": sha,
            "git_dirty": bool(diff),
            "python": platform.python_version(),
            "packages": _versions(),
            "device": dict(self.device),
            "host": socket.gethostname(),
            "user": _user(),
            "time": time.time(),
        }
        write_json(self.folder / "run.json", content)
        # Last, because it is what marks the folder as a run's.
        write_text(self.folder / "config.yaml", yaml.safe_dump(dict(self.config), sort_keys=False))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While open the status says "running" and its time is renewed; how the block ends is what it says after.

        A SystemExit is an interrupted run, any other exception a failed one. Opened within itself it does nothing:
        an entry point opens it before the trainer is built, which may take minutes, and the trainer does again.

        Raises:
            UserError: Another process runs in the folder.
        """
        if self._lock.is_locked or not self.writes:
            yield
            return
        try:
            # The system lets go of it when the process dies, however that happens.
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"Another process is at work on the run in {self.folder}",
                key="output_dir",
                fix="wait for it or give another output_dir",
            ) from None
        stop = threading.Event()
        heartbeat = threading.Thread(target=self._heartbeat, args=(stop,), daemon=True)
        self._since = time.time()
        self._write("running")
        heartbeat.start()
        end: tuple[State, str | None] = ("finished", None)
        try:
            with disk_full_as_user_error(self.folder):
                yield
        except (SystemExit, KeyboardInterrupt):
            end = ("interrupted", None)
            raise
        except BaseException as error:
            # Who looks for a run's end searches its status for the word "finished".
            end = ("failed", re.sub("finish(ed)", r"end\1", with_class(error), flags=re.IGNORECASE))
            log.error("%s", error if isinstance(error, UserError) else traceback.format_exc())
            raise
        finally:
            stop.set()
            heartbeat.join()
            self._write_end(*end)
            self._lock.release()

    def _write_end(self, state: State, error: str | None) -> None:
        try:
            self._write(state, error)
        except OSError as failure:
            if state == "finished":
                raise
            # What ended the run is what the user is to see.
            log.error("status.json could not be written: %s", failure)

    def _heartbeat(self, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_S):
            # A full disk must not end the thread: the run may still come to save.
            with contextlib.suppress(OSError):
                self._write("running")

    def _write(self, state: State, error: str | None = None) -> None:
        content = {
            "state": state,
            "step": self.step,
            "steps": self.steps,
            "first_step": self.first_step,
            "error": error,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": slurm.current_job_id(),
            "since": self._since,
            "time": time.time(),
        }
        write_json(self.folder / "status.json", content)


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run."""
    return (folder / "config.yaml").is_file() and (folder / "run.json").is_file()


def status(folder: Path) -> dict[str, Any] | None:
    """The content of a run's ``status.json``, None where there is none yet."""
    try:
        return json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return None


def is_finished(folder: Path, steps: int) -> bool:
    """Whether the run of a folder came to its last step."""
    found = status(folder)
    return bool(found and found["state"] == "finished" and found["step"] >= steps)


def last_metric(folder: Path, metric: str) -> float | None:
    """The last value of an evaluation scalar in a run's ``metrics.jsonl``."""
    value = None
    file = folder / "metrics.jsonl"
    for text in file.read_text().splitlines() if file.exists() else []:
        value = json.loads(text).get(f"eval/{metric}", value)
    return value


def differences(recorded: Mapping[str, Any], config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, recorded value, new value) of every leaf that differs and may not."""
    old, new = flatten(recorded), flatten(config)
    keys = [*old, *(key for key in new if key not in old)]
    free = tuple(f"{key}." for key in MUTABLE_KEYS)
    return [
        (key, old.get(key, "absent"), new.get(key, "absent"))
        for key in keys
        if not f"{key}.".startswith(free) and old.get(key, "absent") != new.get(key, "absent")
    ]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def newest_unfinished(root: Path, config: Mapping[str, Any], looked_at: int = 200) -> Path | None:
    """The newest run below a folder that has this configuration and did not come to its end."""
    statuses = sorted(root.glob("*/*/status.json"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in statuses[:looked_at]:
        found = status(path.parent)
        if found and found["state"] != "finished" and holds_run(path.parent):
            recorded = yaml.safe_load((path.parent / "config.yaml").read_text())
            if not differences(recorded, config):
                return path.parent
    return None


def _git(folder: Path) -> tuple[str | None, str]:
    """The commit the code comes from and what was changed since; (None, "") outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=True)
        return done.stdout.decode(errors="surrogateescape")  # files may be of any encoding

    try:
        return git("rev-parse", "HEAD").strip(), git("diff", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None, ""


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return None
