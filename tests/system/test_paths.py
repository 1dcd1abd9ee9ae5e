"""What others wrote becomes a path only inside its root."""

from pathlib import Path

import pytest
from fakes.errors import refused

from robolearn.system.paths import fill_template, inside, path_part


@pytest.mark.parametrize("name", ["observation.images.top", "pusht_act", "a b", "..a", ".hidden", "größe", "x" * 255])
def test_names(name: str) -> None:
    assert path_part(name, "key") == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", " ", "...", "a/b", "/a", "../a", "a\\b", "~", "~me", "C:x", "a\0b", "a\nb", "a\x1b[2J", "a\x9b"]
    + ["a\u202eb", "\udc80", "x" * 256, "ä" * 128, 3, None, ["a"]],
)
def test_what_is_no_name(name: object) -> None:
    assert len(str(refused("key", path_part, name, "key"))) < 300


def test_templates_of_the_formats() -> None:
    assert fill_template("data/chunk-{c:03d}/{e:06d}.parquet", "t", c=1, e=23) == "data/chunk-001/000023.parquet"
    found = fill_template("{name}/{c}/{e:d}_{e:02}.mp4", "t", name="observation.x", c=0, e=7)
    assert found == "observation.x/0/7_07.mp4"
    assert fill_template("all.parquet", "t", c=1) == "all.parquet"


@pytest.mark.parametrize(
    "template",
    ["../{c}", "/{c}", "a/../{c}", "a//{c}", "./{c}", "{c}/", "", "~/{c}", "C:/{c}", "a\\{c}", "a\0{c}", None, 3.0]
    + ["{c.real}", "{c[0]}", "{c!r}", "{c:>99999999999}", "{c:099999999999d}", "{c:3d}", "{c:x}", "{c:{c}}", "{other}"]
    + ["{}", "{0}", "{c", "c}", "{name:3}"],
)
def test_templates_of_nobody(template: object) -> None:
    found = refused("data_path", fill_template, template, "data_path", c=1, name="a")
    assert "data_path" in str(found)


@pytest.mark.parametrize("number", [-1, 10**12, 1.5, True, None, [1], "../x", ""])
def test_numbers_of_files(number: object) -> None:
    refused("data_path", fill_template, "data/{c:03d}.parquet", "data_path", c=number)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "link", "folder/x", "loop", "a\0"])
def test_nothing_outside_of_a_root_is_a_file_of_it(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "x").touch()
    (root / "link").symlink_to("../x")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    with pytest.raises(Exception, match="leads out of that folder"):
        inside(root, name)


def test_links_that_stay(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    (root / "b").symlink_to("a/x")
    (tmp_path / "linked").symlink_to("root")
    assert inside(tmp_path / "linked", "b") == tmp_path / "linked" / "b"
    assert inside(root, "not/there") == root / "not/there"


def test_snapshots_of_the_hub_are_links_to_its_blobs(tmp_path: Path) -> None:
    repository = tmp_path / "datasets--me--data"
    snapshot = repository / "snapshots" / "0123"
    (snapshot / "meta").mkdir(parents=True)
    for folder in (repository / "blobs", tmp_path / "blobs" / "ab"):
        folder.mkdir(parents=True)
        (folder / "abc").touch()
    (snapshot / "meta" / "own").symlink_to("../../../blobs/abc")
    (repository / "blobs" / "shared").symlink_to("../../blobs/ab/abc")
    (snapshot / "meta" / "shared").symlink_to("../../../blobs/shared")
    (snapshot / "meta" / "other").symlink_to("../../../../secret")
    assert inside(snapshot, "meta/own").is_file()
    assert inside(snapshot, "meta/shared").is_file()
    refused(str(snapshot / "meta/other"), inside, snapshot, "meta/other")
