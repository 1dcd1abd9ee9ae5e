"""Which processes train together, and what is refused before they begin."""

from pathlib import Path

import pytest
from fakes.datasets import write_dataset

from robolearn.cli.train import main
from robolearn.distributed.world import World

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (3, 4, 1)),
        (SRUN, (2, 4, 0)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (0, 1, 0)),
        # A shell within an allocation of four tasks is one process.
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, (0, 1, 0)),
    ],
)
def test_torchrun_and_srun_tell_who_is_who(
    variables: dict[str, str], expected: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*TORCHRUN, *SRUN, "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = World.from_env()
    assert (found.rank, found.size, found.local_rank) == expected


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("dataset") / "keypoints"
    write_dataset(root, episodes=2, length=30, image_dtype=None, keypoints=True)
    return ["dataset=pusht_keypoints", f"dataset.root={root}", "env.obs_type=environment_state_agent_pos"]


REFUSED = {
    "folder": ([], "output_dir: 4 processes train one run, so name its folder: output_dir=FOLDER."),
    "batch": (["output_dir=run", "batch_size=10"], "batch_size=10 is what all 4 processes of a run take together, so"),
    "online": (
        ["output_dir=run", "policy=tdmpc", "online=default", "online.steps=5"],
        "the online phase runs in one process, not in 4",
    ),
    "graph": (["output_dir=run", "cuda_graph=true"], "cuda_graph=true: updates of 4 processes are not captured"),
    "sweep": (["-m", "seed=1,2"], "--multirun: 4 processes were started to train one run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_several_processes_cannot_do_is_refused(
    name: str,
    keys: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, sentence = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    for variable, value in (TORCHRUN | {"RANK": "0"}).items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as refused:
        main([*keys, *given])
    assert refused.value.code == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_told_once(
    keys: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in TORCHRUN.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as refused:
        main([*keys, "batch_size=10", "output_dir=run"])
    assert refused.value.code == 2
    assert not capsys.readouterr().err
