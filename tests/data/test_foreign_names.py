"""What a stranger's dataset calls its features and files leads nowhere but into its own folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.datasets import read_rows, write_dataset
from fakes.errors import message, refused

from robolearn.cli.dataset import main
from robolearn.data import LeRobotDataset
from robolearn.data.lerobot_format.convert import convert
from robolearn.data.lerobot_format.meta import read_meta
from robolearn.data.lerobot_format.recorder import feature
from robolearn.data.lerobot_format.verify import verify
from robolearn.data.lerobot_format.writer import DatasetWriter
from robolearn.data.video.decode import count_frames

DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.image/chunk-000/file-000.mp4"


def edit_info(root: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    file = root / "meta/info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))
    return file


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "new", "v3.0", episodes=2, length=4, image_size=32)


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """Without images, which is quicker."""
    return write_dataset(tmp_path / "numbers", "v3.0", episodes=2, length=4, image_dtype=None, keypoints=True)


@pytest.mark.parametrize(
    "key", ["x/../../../../PWNED", "/PWNED", "..", ".", "", "a\0b", "a\x1b[2Jb", "C:x", "~/x", "a\\..\\b"]
)
@pytest.mark.parametrize("dtype", ["video", "image", "float32"])
def test_keys_of_features(numbers: Path, key: str, dtype: str) -> None:
    file = edit_info(numbers, lambda info: info["features"].update({key: feature(dtype, [8, 8, 3])}))
    refused(str(file), read_meta, numbers)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("template", ["../{episode_index}", "/etc/passwd", "{episode_index.real}", "{x:>999999999}", 3])
@pytest.mark.parametrize("which", ["data_path", "video_path"])
def test_templates(tmp_path: Path, version: Any, which: str, template: Any) -> None:
    root = write_dataset(tmp_path / "set", version, episodes=2, length=4, image_size=32)
    file = edit_info(root, lambda info: info.update({which: template}))
    assert which in str(refused(str(file), read_meta, root))
    assert verify(root)


def test_links_that_leave_the_dataset(new: Path, tmp_path: Path) -> None:
    for name in (DATA, VIDEO, "meta/stats.json"):
        outside = tmp_path / Path(name).name
        shutil.move(new / name, outside)
        (new / name).symlink_to(outside)
        refused(str(new / name), LeRobotDataset, root=str(new))
        assert verify(new)
        (new / name).unlink()
        shutil.move(outside, new / name)


def test_a_linked_folder_and_a_snapshot_of_the_hub_are_read(new: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(new)
    blobs, snapshot = tmp_path / "datasets--me--x/blobs", tmp_path / "datasets--me--x/snapshots/0123"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(file for file in new.rglob("*") if file.is_file())):
        shutil.copy(file, blobs / str(number))
        linked = snapshot / file.relative_to(new)
        linked.parent.mkdir(parents=True, exist_ok=True)
        linked.symlink_to(blobs / str(number))
    for root in (tmp_path / "link", snapshot):
        dataset = LeRobotDataset(root=str(root), cache_dir=str(tmp_path / "cache")).load(torch.device("cpu"))
        assert dataset.num_frames == 9
        assert verify(root) == []


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "link.png"])
def test_images_beside_the_table(tmp_path: Path, path: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    root = write_dataset(tmp_path / "set", "v3.0", episodes=1, length=4, image_size=32, image_dtype="image")
    table = pq.read_table(root / DATA)
    image = read_rows(root / DATA)["observation.image"][0]
    (tmp_path / "secret.png").write_bytes(image["bytes"])
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    column = table.schema.get_field_index("observation.image")
    images = pa.array([{"bytes": None, "path": path}] * 4, table.schema.field(column).type)
    pq.write_table(table.set_column(column, "observation.image", images), root / DATA)
    dataset = LeRobotDataset(root=str(root), cache_dir=str(tmp_path / "cache"))
    assert "leads out of that folder" in message(lambda: dataset.load(torch.device("cpu")))


@pytest.mark.parametrize(
    "text", ["ffconcat version 1.0\nfile 'real.mp4'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:1,\nreal.mp4\n"]
)
def test_a_list_of_other_files_is_no_video(new: Path, text: str) -> None:
    shutil.copy(new / VIDEO, (new / VIDEO).with_name("real.mp4"))
    assert count_frames((new / VIDEO).with_name("real.mp4"))
    (new / VIDEO).write_text(text)
    refused(str(new / VIDEO), count_frames, new / VIDEO)


def test_nothing_is_written_beside_the_folder(tmp_path: Path, numbers: Path) -> None:
    refused("a/../../b", DatasetWriter, tmp_path / "out", 10.0, {"a/../../b": feature("video", [8, 8, 3])})
    edit_info(numbers, lambda info: info["features"].update({"../x": feature("float32", [1])}))
    message(lambda: convert(numbers, tmp_path / "out", "v2.1"))
    assert not (tmp_path / "out").exists()


def test_terminal_and_page_show_texts_as_texts(
    numbers: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evil = "<script>alert(1)</script>\x1b[2J\x9b31m\u202e\nforged"
    edit_info(numbers, lambda info: info["features"]["next.done"].update(dtype=evil, names=[evil]))
    edit_info(numbers, lambda info: info.update(settings={evil: evil}, splits={evil: "0:99"}))
    for command in (["info", numbers], ["verify", numbers], ["show", numbers, "--out", tmp_path / "page.html"]):
        with pytest.raises(SystemExit):
            main([str(word) for word in command])
    found = capfd.readouterr()
    page = (tmp_path / "page.html").read_text()
    for text in (found.out + found.err, page):
        assert not any(sign in text for sign in "\x1b\x9b\u202e")
    assert "\nforged" not in found.out
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
