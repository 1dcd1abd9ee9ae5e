"""Several datasets as one."""

import json
import logging
from pathlib import Path

import pytest
import torch
from fakes.cli import TINY, run
from fakes.datasets import write_dataset
from safetensors.torch import load_file

from robolearn.data import LeRobotDataset, MultiDataset
from robolearn.errors import UserError
from robolearn.normalize import Normalizer
from robolearn.types import Window

CPU = torch.device("cpu")
WINDOW = Window(observation=(-1, 0), action=(0, 1, 2), reward=(0,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two datasets that differ in version, storage and length; the second has keypoints too."""
    folder = tmp_path_factory.mktemp("multi")
    first = write_dataset(folder / "a", "v3.0", 2, 10, 48, seed=1)
    second = write_dataset(folder / "b", "v2.1", 3, 12, 48, "image", keypoints=True, seed=2)
    return [str(first), str(second)]


def multi(folders: list[str], tmp_path: Path, **options) -> MultiDataset:
    return MultiDataset(folders, cache_dir=str(tmp_path), **options)


def alone(folder: str, tmp_path: Path) -> LeRobotDataset:
    return LeRobotDataset(root=folder, cache_dir=str(tmp_path)).load(CPU)


def edited(folder: str, copy: Path, **changes) -> str:
    """A copy of a dataset with another info.json."""
    import shutil

    shutil.copytree(folder, copy)
    info = json.loads((copy / "meta/info.json").read_text())
    (copy / "meta/info.json").write_text(json.dumps({**info, **changes}))
    return str(copy)


def test_rows_are_those_of_the_datasets_in_the_order_asked(folders, tmp_path):
    both, first, second = multi(folders, tmp_path).load(CPU), *(alone(f, tmp_path) for f in folders)
    assert both.num_frames == first.num_frames + second.num_frames
    assert both.num_episodes == 5
    indices = torch.tensor([first.num_frames + 5, 0, first.num_frames - 1, both.num_frames - 1, 3])
    batch = both.batch(indices, WINDOW)
    assert batch["dataset_index"].tolist() == [1, 0, 0, 1, 0]
    own = torch.tensor([5, 0, first.num_frames - 1, second.num_frames - 1, 3])
    for row, (number, index) in enumerate(zip(batch["dataset_index"], own, strict=True)):
        expected = (first, second)[number].batch(index[None], WINDOW)
        for key in batch.keys() - {"dataset_index"}:
            assert torch.equal(batch[key][row], expected[key][0]), key


def test_what_not_all_have_is_left_out_and_named(folders, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        both = multi(folders, tmp_path)
    assert set(both.spec.observation) == {"observation.image", "observation.state"}
    assert "observation.environment_state is left out" in caplog.text
    batch = both.load(CPU).batch(torch.tensor([0, both.num_frames - 1]), WINDOW)
    assert "observation.environment_state" not in batch


def test_observations_are_left_out_of_all_of_them(folders, tmp_path):
    both = multi(folders, tmp_path, exclude=["observation.image", "observation.environment_state"]).load(CPU)
    assert list(both.spec.observation) == list(both.stats)[:-1] == ["observation.state"]
    assert not list(tmp_path.glob("frames/*"))
    with pytest.raises(UserError, match="observation.images is none of the dataset's observations"):
        multi(folders, tmp_path, exclude=["observation.images"])


def test_joint_statistics_are_those_of_all_frames(folders, tmp_path):
    both = multi(folders, tmp_path).load(CPU)
    every = both.batch(torch.arange(both.num_frames), Window())
    for key in ("observation.state", "action"):
        values = every[key][:, 0].double()
        assert torch.allclose(both.stats[key]["mean"], values.mean(0).float(), rtol=1e-5)
        assert torch.allclose(both.stats[key]["std"], values.std(0, correction=0).float(), rtol=1e-5)
        assert torch.equal(both.stats[key]["min"], every[key].amin((0, 1)))
        assert torch.equal(both.stats[key]["max"], every[key].amax((0, 1)))


def test_each_sample_may_be_scaled_by_its_own_dataset(folders, tmp_path):
    both = multi(folders, tmp_path, statistics="per_dataset", acts_with=1).load(CPU)
    mapping = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MEAN_STD"}
    normalizer = Normalizer(both.spec, mapping, *both.normalization_stats(lambda one: one.stats))
    parts = [Normalizer(both.spec, mapping, dataset.stats) for dataset in both.datasets]
    batch = both.batch(torch.tensor([2, both.num_frames - 3, 7]), WINDOW)
    encoded = normalizer.encode(batch)
    for row, number in enumerate(batch["dataset_index"]):
        alone = parts[number].encode({k: v[row : row + 1] for k, v in batch.items()})
        for key in ("observation.image", "observation.state", "action"):
            assert torch.equal(encoded[key][row], alone[key][0]), key
    # Acting knows one dataset alone, and so does a checkpoint.
    seen = {key: batch[key] for key in both.spec.observation}
    assert torch.equal(normalizer.encode(seen)["observation.state"], parts[1].encode(seen)["observation.state"])
    assert torch.equal(normalizer.decode_action(encoded["action"]), parts[1].decode_action(encoded["action"]))
    assert normalizer.state_dict().keys() == parts[1].state_dict().keys()


def test_tasks_are_counted_together(folders, tmp_path):
    third = Path(edited(folders[1], tmp_path / "third"))
    (third / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "another"}) + "\n")
    both = multi([*folders, str(third)], tmp_path).load(CPU)
    assert both.tasks[1] == "another"
    indices = torch.tensor([both.num_frames - 1, 0])
    assert both.batch(indices, WINDOW)["task_index"].tolist() == [1, 0]
    assert both.task_of(indices) == ["another", both.tasks[0]]


def test_frames_to_train_on(folders, tmp_path):
    both = multi(folders, tmp_path).load(CPU)
    lengths = [10, 11, 12, 13, 14]
    assert len(both.valid_indices(4)) == sum(lengths) - 4 * 5
    assert [len(part) for part in both.valid_parts(4)] == [10 + 11 - 8, 12 + 13 + 14 - 12]
    frames = both.batch(both.valid_indices(9), Window())
    pairs = zip(frames["dataset_index"].tolist(), frames["frame_index"].tolist(), strict=True)
    assert list(pairs) == [(0, 0), (0, 0), (0, 1), *((1, f) for n in (3, 4, 5) for f in range(n))]


def test_a_source_may_have_options_of_its_own(folders, tmp_path):
    part = LeRobotDataset(root=folders[1], episodes=[2], cache_dir=str(tmp_path))
    both = multi([folders[0], part], tmp_path).load(CPU)
    assert both.num_frames == 10 + 11 + 14


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": [1.0]}, r"dataset.weights has 1 numbers for 2 datasets"),
        ({"weights": [1.0, -1.0]}, r"dataset.weights=\[1.0, -1.0\] must be finite"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"acts_with": 2}, r"dataset.acts_with=2: the datasets are 0 to 1"),
    ],
)
def test_numbers_that_make_no_sense(folders, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        multi(folders, tmp_path, **options)


def test_no_source():
    with pytest.raises(UserError, match=r"dataset.sources names no dataset"):
        MultiDataset([])


def test_another_rate_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match="10 frames a second and .* 20"):
        multi([folders[0], edited(folders[1], tmp_path / "fast", fps=20)], tmp_path)


def test_a_folder_that_is_not_there(folders, tmp_path):
    with pytest.raises(UserError, match=r"dataset.sources: ./nowhere is no folder"):
        multi([folders[0], "./nowhere"], tmp_path)


def test_nothing_in_common(folders, tmp_path):
    (first, second) = (write_dataset(tmp_path / str(size), episodes=1, image_size=size) for size in (16, 24))
    for folder in (first, second):
        info = json.loads((folder / "meta/info.json").read_text())
        del info["features"]["observation.state"]
        (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"no key observation\.\* is common .*\(3, 16, 16\).*\(3, 24, 24\)"):
        multi([str(first), str(second)], tmp_path)


@pytest.mark.slow
def test_a_run_on_both_resumes_exactly(folders, tmp_path):
    sources = f"dataset.sources=[{folders[0]},{folders[1]}]"
    argv = [*TINY, "env=none", "dataset=multi", sources, "dataset.weights=[1,3]", "dataset.statistics=per_dataset"]
    argv += ["policy.crop_shape=[40,40]", "policy.horizon=8", "policy.n_action_steps=4", "scheduler=constant"]
    argv = [text for text in argv if not text.startswith(("env.", "scheduler.num"))]
    argv += [f"dataset.cache_dir={tmp_path}", "save_freq=2"]
    run("train", *argv, "offline.steps=6", f"output_dir={tmp_path / 'whole'}")
    for steps in (2, 6):
        run("train", *argv, f"offline.steps={steps}", f"output_dir={tmp_path / 'parts'}")
    one, two = (load_file(tmp_path / name / "checkpoints/last/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
