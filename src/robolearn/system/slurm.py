"""What SLURM says of itself, of this process and of its jobs; every question is one short command."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping

from robolearn.errors import UserError

PATIENCE_S = 30


def current_job_id() -> str | None:
    """The id of the job this process runs in, as squeue shows it: ``7`` or, in an array, ``12_3``."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID")


def is_available() -> bool:
    """Whether jobs can be submitted from this machine."""
    return shutil.which("sbatch") is not None and shutil.which("srun") is not None


def queue() -> dict[str, str] | None:
    """The state of each of this user's jobs that waits or runs, by its id; None where SLURM does not answer."""
    told = _ask("squeue", "--noheader", "--array", "--me", "--format=%i %T")
    return None if told is None else dict(line.split(maxsplit=1) for line in told.splitlines() if line.strip())


def partitions() -> list[str]:
    """The partitions of the cluster, the default one first; empty where SLURM does not answer."""
    told = (_ask("sinfo", "--noheader", "--format=%P") or "").split()
    return [name.rstrip("*") for name in sorted(set(told), key=lambda name: (not name.endswith("*"), name))]


def max_array_size() -> int:
    """How many jobs an array may have; SLURM's default where it does not say."""
    found = re.search(r"MaxArraySize *= *(\d+)", _ask("scontrol", "show", "config") or "")
    return max(1, int(found[1])) if found else 1001


def check_request(launcher: Mapping[str, object]) -> None:
    """Ask SLURM whether it would take a job, without submitting one.

    Args:
        launcher: Keys of the launcher's file.

    Raises:
        UserError: There is no SLURM here or it does not answer, no such partition, or no node that has what is asked
            for.
    """
    if not is_available():
        raise UserError(
            "hydra/launcher: SLURM's commands are not found here; start the sweep where sbatch works, or run its jobs "
            "on this machine with hydra/launcher=local."
        )
    partition, there = launcher.get("partition"), partitions()
    if partition and there and not set(str(partition).split(",")) <= set(there):
        raise UserError(f"hydra.launcher.partition={partition}: there is no such partition; there are {_list(there)}.")
    command = ["sbatch", "--test-only", *_flags(launcher), "--wrap=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired):
        return  # a slow controller is no mistake of the user's; submitting will tell
    if done.returncode and not there:
        raise UserError(
            f"hydra/launcher: SLURM does not answer ({_reason(done.stderr)}); try again later, or run the jobs on this "
            "machine with hydra/launcher=local."
        )
    if done.returncode:
        raise UserError(f"hydra/launcher: SLURM refuses this request ({_reason(done.stderr)}): {_asked(launcher)}.")


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


def _reason(stderr: str) -> str:
    lines = [re.sub(r"^(sbatch: )?(error: |fatal: )?", "", line).strip() for line in stderr.splitlines()]
    told = [re.sub(r"^(allocation failure|Batch job submission failed): ", "", line) for line in lines if line]
    return told[-1].rstrip(".") if told else "it does not say why"


def _asked(launcher: Mapping[str, object]) -> str:
    shown = ("partition", "nodes", "tasks_per_node", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min")
    parts = [f"{key}={launcher[key]}" for key in shown if launcher.get(key) is not None]
    return f"change hydra.launcher.* ({', '.join(parts)})"


def _list(names: list[str]) -> str:
    return f"{names[0]} (the default)" + "".join(f", {name}" for name in names[1:])


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
