#!/usr/bin/env python
"""A real SLURM of several nodes on this one machine, while a command runs in it.

    python scripts/slurm_cluster.py [--nodes 4] [--cpus 4] [--gpus 2] [--] COMMAND ...

Needs root and Debian's packages slurmctld, slurmd, slurm-client and munge; scripts/install_slurm.sh installs them.
Everything listens on this machine only and lies in a temporary folder; the GPUs are character devices that look like
some. The partition ``main`` is the default and pre-empts ``low``, whose jobs have 30 s to save.
"""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
SBIN = "/usr/sbin"


def main() -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if reason := why_not():
        raise SystemExit(f"No SLURM can be started here: {reason}.")
    command = [part for part in arguments.command if part != "--"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # the cluster is stopped then too
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder:
        cluster = Cluster(Path(folder), arguments.nodes, arguments.cpus, arguments.gpus)
        with (
            cluster.running() as environment,
            subprocess.Popen(command or ["sinfo"], env={**os.environ, **environment}) as process,
        ):
            try:
                return process.wait()
            finally:
                process.terminate()


def why_not() -> str | None:
    """What is missing; None where a cluster can be started."""
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        return f"{', '.join(missing)} not found; as root, scripts/install_slurm.sh installs them"
    if os.geteuid() != 0:
        return "SLURM's daemons must be started by root"
    return None


def free_ports(number: int) -> int:
    """The first of so many ports in a row that nobody listens on, below those the system gives out itself."""
    for first in range(17800, 30000, number):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for port in range(first, first + number):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first
    raise RuntimeError("no ports are free")


class Cluster:
    """The daemons of one cluster.

    Args:
        folder: For their configuration, state and logs; its path should be short and readable by all.
        nodes: How many slurmd, named n1, n2, ...
        cpus: Of each node, whatever the machine has.
        gpus: Of each node.
    """

    def __init__(self, folder: Path, nodes: int = 4, cpus: int = 4, gpus: int = 2) -> None:
        self.folder, self.nodes, self.cpus, self.gpus = folder, nodes, cpus, gpus
        self.port = free_ports(nodes + 2)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.processes: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[dict[str, str]]:
        """While open the cluster takes jobs.

        Yields:
            What the environment of SLURM's commands must hold.
        """
        try:
            self._configure()
            self._start()
            yield self.environment
        finally:
            self._stop()

    def _configure(self) -> None:
        self.folder.chmod(0o755)
        for name in ("state", "log", "munge", *(f"spool/n{i + 1}" for i in range(self.nodes))):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        key = self.folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for number in range(self.gpus):
            os.mknod(self.folder / f"nvidia{number}", 0o20666, os.makedev(1, 3))
        (self.folder / "slurm.conf").write_text(self._conf())
        devices = f"Name=gpu File={self.folder}/nvidia[0-{self.gpus - 1}]\n"
        (self.folder / "gres.conf").write_text(devices if self.gpus else "")
        # Without a named kind slurmd looks for one, and ends where it finds none.
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def _conf(self) -> str:
        host, memory = socket.gethostname().split(".")[0], 4000
        lines = [
            "ClusterName=robolearn",
            f"SlurmctldHost={host}(127.0.0.1)",
            f"SlurmctldPort={self.port}",
            "SlurmUser=root",
            "SlurmdUser=root",
            "AuthType=auth/munge",
            "CredType=cred/munge",
            # A requeued job waits until its credential has expired, two minutes by default.
            f"AuthInfo=socket={self.folder}/munge/socket,cred_expire=5",
            "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny",
            f"StateSaveLocation={self.folder}/state",
            f"SlurmdSpoolDir={self.folder}/spool/%n",
            f"SlurmctldPidFile={self.folder}/state/slurmctld.pid",
            f"SlurmdPidFile={self.folder}/spool/%n/slurmd.pid",
            "ProctrackType=proctrack/linuxproc",
            "TaskPlugin=task/none",
            "MpiDefault=none",
            "SelectType=select/cons_tres",
            "SelectTypeParameters=CR_CPU_Memory",
            f"DefMemPerCPU={memory // self.cpus}",
            "SlurmdParameters=config_overrides",
            "SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0,bf_interval=2",
            "ReturnToService=2",
            "KillWait=5",
            "JobRequeue=1",
            "PreemptType=preempt/partition_prio",
            "PreemptMode=REQUEUE",
            "SlurmctldParameters=preempt_send_user_signal",
            "GresTypes=gpu",
        ]
        for number in range(1, self.nodes + 1):
            place = f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={self.port + 1 + number}"
            lines.append(f"{place} CPUs={self.cpus} RealMemory={memory} Gres=gpu:{self.gpus} State=UNKNOWN")
        lines.append("PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF")
        lines.append("PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=30")
        return "\n".join([*lines, ""])

    def _start(self) -> None:
        munge = self.folder / "munge"
        options = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._spawn("munged", "-F", "-f", *(f"--{option}={munge / name}" for option, name in options.items()))
        self._wait(60, ["munge", "-n", "-S", str(munge / "socket")])
        self._spawn("slurmctld", "-D")
        for number in range(1, self.nodes + 1):
            self._spawn("slurmd", "-D", "-N", f"n{number}")
        self._wait(60, ["scontrol", "ping"])
        self._wait(90, ["sinfo", "--noheader", "--Node", "--partition=main", "--states=idle"], lines=self.nodes)

    def _spawn(self, program: str, *arguments: str) -> None:
        name = f"{program}-{arguments[-1]}" if program == "slurmd" else program
        with (self.folder / "log" / f"{name}.log").open("wb") as log:
            path = shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}") or program
            # Should this process be killed, its daemons end with it.
            command = ["setpriv", "--pdeathsig=TERM", path, *arguments]
            environment = {**os.environ, **self.environment}
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
        self.processes.append(process)

    def _wait(self, seconds: float, command: list[str], lines: int = 0) -> None:
        end = time.monotonic() + seconds
        environment = {**os.environ, **self.environment}
        while True:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30)
            if done.returncode == 0 and done.stdout.count("\n") >= lines:
                return
            if time.monotonic() > end:
                logs = "".join(file.read_text()[-500:] for file in sorted((self.folder / "log").iterdir()))
                raise RuntimeError(f"SLURM did not start ({' '.join(command)}): {done.stdout}{done.stderr}\n{logs}")
            time.sleep(0.1)

    def _stop(self) -> None:
        environment = {**os.environ, **self.environment}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            cancel = ["scancel", f"--user={os.geteuid()}"]
            subprocess.run(cancel, env=environment, timeout=10, capture_output=True)
            self._until_no_job(environment)
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _until_no_job(self, environment: dict[str, str]) -> None:
        for _ in range(100):
            left = subprocess.run(["squeue", "-h"], env=environment, timeout=10, capture_output=True).stdout
            if not left.strip():
                return
            time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
