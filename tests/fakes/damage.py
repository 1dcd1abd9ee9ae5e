"""Ways in which a small file is found damaged."""

from collections.abc import Callable
from pathlib import Path


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: len(file.read_bytes()) // 2])


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "something").write_text("of somebody")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": _cut,
    "empty": lambda file: file.write_bytes(b""),
    "binary": lambda file: file.write_bytes(bytes(range(256))),
    "of another kind": lambda file: file.write_text('[1, {"a": null}]\n'),
    "of other keys": lambda file: file.write_text('{"state": 3, "step": "x", "success_rate": "high"}\n'),
    "nested too deeply": lambda file: file.write_text("[" * 3000),
    "a folder": _folder,
}
