"""What is made of SLURM's answers; the commands are stand-ins here, the real ones are in tests/slurm."""

from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.robolearn.launchers import SlurmLauncher
from robolearn.errors import UserError
from robolearn.system import slurm

LAUNCHER: dict[str, Any] = {"partition": None, "gpus_per_node": 1, "nodes": 1, "mem_gb": 8, "timeout_min": 60}
LAUNCHER |= {"additional_parameters": {"requeue": True, "mail_type": "END"}, "cpus_per_task": None}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put stand-ins in front of the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def write(name: str, script: str) -> None:
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    write("srun", "")
    write("sinfo", "printf 'low\\nmain*\\ngpu\\n'")
    write("sbatch", f'echo "$@" > {tmp_path}/asked')
    return write


def test_a_good_request_is_asked_as_submitit_will(command, tmp_path: Path) -> None:
    slurm.check_request(LAUNCHER)
    asked = (tmp_path / "asked").read_text().strip()
    assert asked == "--test-only --nodes=1 --gpus-per-node=1 --time=60 --mem=8G --requeue --mail-type=END --wrap=true"
    slurm.check_request(LAUNCHER | {"gpus_per_node": 0, "partition": "gpu,low"})
    assert "gpus" not in (tmp_path / "asked").read_text()


def test_an_unknown_partition_is_refused_with_those_there_are(command) -> None:
    with pytest.raises(UserError, match=r"partition=gpus: .* there are main \(the default\), gpu, low\."):
        slurm.check_request(LAUNCHER | {"partition": "gpus"})


def test_a_refusal_is_one_sentence(command) -> None:
    command("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    with pytest.raises(UserError) as told:
        slurm.check_request(LAUNCHER)
    text = str(told.value)
    assert "refuses this request (Requested node configuration is not available)" in text
    assert "gpus_per_node=1, mem_gb=8" in text


def test_a_controller_that_does_not_answer_is_told(command) -> None:
    for name in ("sbatch", "sinfo"):
        command(name, "echo 'allocation failure: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(UserError, match=r"SLURM does not answer \(Unable to contact slurm controller\); try again"):
        slurm.check_request(LAUNCHER)


def test_no_slurm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="hydra/launcher=local"):
        slurm.check_request(LAUNCHER)
    assert slurm.queue() is None


def test_the_queue(command) -> None:
    command("squeue", "printf '12_0 RUNNING\\n12_1 PENDING\\n7 COMPLETING\\n'")
    assert slurm.queue() == {"12_0": "RUNNING", "12_1": "PENDING", "7": "COMPLETING"}
    command("squeue", "")
    assert slurm.queue() == {}
    command("squeue", "exit 1")
    assert slurm.queue() is None


def test_a_grid_larger_than_an_array_is_submitted_as_there_is_room(command) -> None:
    command("scontrol", "printf 'MaxArraySize            = 1000\nMaxDBDMsgs = 5\n'")
    launcher = SlurmLauncher(array_parallelism=4)
    assert launcher._free_slots(pending=20, submitted=0) == 20
    assert launcher._free_slots(pending=1200, submitted=0) == 1000
    assert [launcher._free_slots(pending=200, submitted=number) for number in (1000, 4, 3, 1)] == [0, 0, 1, 3]
    command("scontrol", "exit 1")
    assert slurm.max_array_size() == 1001


def test_the_job_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm.current_job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "14")
    assert slurm.current_job_id() == "14"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm.current_job_id() == "12_2"
