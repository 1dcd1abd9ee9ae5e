"""Queries to SLURM: this process's job, the queue, the partitions and the limits, each by one short command."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from robolearn.errors import UserError

TIMEOUT_S = 30
"""How long a command of SLURM may take."""


def current_job_id() -> str | None:
    """The id of this process's job as squeue shows it, ``7`` or in an array ``12_3``; None outside a job."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def is_available() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def queue() -> dict[str, str] | None:
    """The states of this user's pending and running jobs by job id; None where SLURM does not answer."""
    output = _run("squeue", "--noheader", "--array", "--me", "--format=%i %T")
    return None if output is None else dict(line.split(maxsplit=1) for line in output.splitlines() if line.strip())


def partitions() -> list[str]:
    """The partitions of the cluster, the default one first; empty where SLURM does not answer."""
    names = (_run("sinfo", "--noheader", "--format=%P") or "").split()
    return [name.rstrip("*") for name in sorted(set(names), key=lambda name: (not name.endswith("*"), name))]


def max_array_size() -> int:
    """The most jobs that an array may have (MaxArraySize); SLURM's default where it does not answer."""
    found = re.search(r"MaxArraySize *= *(\d+)", _run("scontrol", "show", "config") or "")
    return max(1, int(found[1])) if found else 1001


def check_request(launcher: Mapping[str, object]) -> None:
    """Ask SLURM whether it would accept a job, without submitting one (``sbatch --test-only``).

    Args:
        launcher: Keys of the launcher's file.

    Raises:
        UserError: SLURM is not installed or does not answer, the partition does not exist, or no node fits the request.
    """
    if not is_available():
        raise UserError(
            "hydra/launcher: SLURM's commands are not found here",
            key="hydra/launcher",
            fix="start the sweep where sbatch works, or run its jobs on this machine with hydra/launcher=local",
        )
    partition, there = launcher.get("partition"), partitions()
    if partition and there and not set(str(partition).split(",")) <= set(there):
        key = "hydra.launcher.partition"
        raise UserError(f"{key}={partition}: there is no such partition; there are {_list(there)}.", key=key)
    command = ["sbatch", "--test-only", *_flags(launcher), "--wrap=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return  # a slow controller is no mistake of the user's; submitting will show
    if done.returncode and not there:
        raise UserError(
            f"hydra/launcher: SLURM does not answer ({_last_error(done.stderr)})",
            key="hydra/launcher",
            fix="try again later, or run the jobs on this machine with hydra/launcher=local",
        )
    if done.returncode:
        message = (
            f"hydra/launcher: SLURM refuses this request ({_last_error(done.stderr)}): {_how_to_change(launcher)}."
        )
        raise UserError(message, key="hydra/launcher")


def _flags(launcher: Mapping[str, object]) -> list[str]:
    sizes = {
        "partition": "partition",
        "qos": "qos",
        "account": "account",
        "constraint": "constraint",
        "exclude": "exclude",
        "gres": "gres",
        "nodes": "nodes",
        "tasks_per_node": "ntasks-per-node",
        "cpus_per_task": "cpus-per-task",
        "cpus_per_gpu": "cpus-per-gpu",
        "gpus_per_node": "gpus-per-node",
        "gpus_per_task": "gpus-per-task",
        "mem_per_gpu": "mem-per-gpu",
        "mem_per_cpu": "mem-per-cpu",
        "timeout_min": "time",
    }
    flags = [f"--{flag}={launcher[key]}" for key, flag in sizes.items() if launcher.get(key) not in (None, 0)]
    if (memory := launcher.get("mem_gb")) is not None:
        flags.append(f"--mem={memory}G")
    extra = launcher.get("additional_parameters")
    for name, value in extra.items() if isinstance(extra, Mapping) else ():
        flag = f"--{str(name).replace('_', '-')}"
        flags.append(flag if value is True else f"{flag}={value}")
    return flags


def _last_error(stderr: str) -> str:
    lines = [re.sub(r"^(sbatch: )?(error: |fatal: )?", "", line).strip() for line in stderr.splitlines()]
    errors = [re.sub(r"^(allocation failure|Batch job submission failed): ", "", line) for line in lines if line]
    return errors[-1].rstrip(".") if errors else "it does not say why"


def _how_to_change(launcher: Mapping[str, object]) -> str:
    shown = ("partition", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")
    parts = [f"{key}={launcher[key]}" for key in shown if launcher.get(key) is not None]
    return f"change hydra.launcher.* ({', '.join(parts)})"


def _list(names: list[str]) -> str:
    return f"{names[0]} (the default)" + "".join(f", {name}" for name in names[1:])


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
