"""Commands in processes that have imported torch and the simulators already: one process imports, the others fork."""

import contextlib
import functools
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

MODULES = ("robolearn.config.preflight", "robolearn.runs.logger", "robolearn.collecting.demonstration_workers")
Request = tuple[str, tuple[str, ...], str, dict[str, str], str]


def run(
    module: str, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], seconds: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the ``main`` of a module as a process of its own, with both streams in `stdout`.

    Args:
        module: Its ``main`` gets the arguments.
        argv: The arguments.
        cwd: Where it runs.
        env: All its environment variables.
        seconds: What a slow and busy machine may need.

    Raises:
        AssertionError: It took longer; with what it had printed.
    """
    server = _server()
    with tempfile.NamedTemporaryFile("r") as output:
        server.send((module, tuple(argv), str(cwd), dict(env), output.name))
        pid = server.recv()
        ended = server.poll(seconds)
        if not ended:
            os.killpg(pid, signal.SIGKILL)
        status = server.recv()
        text = Path(output.name).read_text()
    assert ended, f"{module} {' '.join(argv)} did not end within {seconds} s.\n{text}"
    return subprocess.CompletedProcess([module, *argv], status, text)


@functools.cache
def _server() -> Connection:
    """A connection to this process's server, which ends when this process does, however that ends."""
    ours, theirs = Pipe()
    code = "import sys; from fakes.preloaded import serve; serve(int(sys.argv[1]))"
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.Popen(
        [sys.executable, "-c", code, str(theirs.fileno())],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        # Not this process's streams: whoever reads those would wait for a server that was left behind.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    theirs.close()
    return ours


def serve(descriptor: int) -> None:
    """Answer one request after the other: the process id of the command, then its exit status."""
    for module in MODULES:
        importlib.import_module(module)
    os.set_inheritable(descriptor, False)
    connection = Connection(descriptor)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            break
        connection.send(pid)
        _, code = os.waitpid(pid, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it left running
        connection.send(os.waitstatus_to_exitcode(code))
    connection.close()
    _be(request)


def _be(request: Request) -> None:
    """Become the command."""
    module, argv, folder, environment, output = request
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY)
    for stream, number in ((os.open(os.devnull, os.O_RDONLY), 0), (file, 1), (file, 2)):
        os.dup2(stream, number)
    sys.argv = [module, *argv]
    try:
        importlib.import_module(module).main(list(argv))
    except Exception:
        traceback.print_exc()
        sys.exit(1)
