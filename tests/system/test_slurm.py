"""What is made of SLURM's answers; the commands are stand-ins here, the real ones are in tests/slurm."""

from pathlib import Path
from typing import Any

import pytest
from fakes.refusals import Refuses

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


def test_an_unknown_partition_is_refused_with_those_there_are(command, refuses) -> None:
    with refuses("hydra.launcher.partition"):
        slurm.check_request(LAUNCHER | {"partition": "gpus"})


def test_a_refusal_is_one_sentence(command, refuses) -> None:
    command("sbatch", "echo 'allocation failure: Requested node configuration is not available' >&2; exit 1")
    with refuses("hydra/launcher"):
        slurm.check_request(LAUNCHER)


def test_a_controller_that_does_not_answer_is_reported(command, refuses) -> None:
    for name in ("sbatch", "sinfo"):
        command(name, "echo 'allocation failure: Unable to contact slurm controller' >&2; exit 1")
    with refuses("hydra/launcher"):
        slurm.check_request(LAUNCHER)


def test_no_slurm_is_reported(monkeypatch: pytest.MonkeyPatch, refuses: Refuses) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with refuses("hydra/launcher"):
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
    assert slurm.free_slots(20, submitted=0, parallelism=4) == 20
    assert slurm.free_slots(1200, submitted=0, parallelism=4) == 1000
    assert [slurm.free_slots(200, submitted, parallelism=4) for submitted in (1000, 4, 3, 1)] == [0, 0, 1, 3]
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
