"""The folders of configuration files and caches, and what may become a path of what others wrote."""

import functools
import os
import re
import string
from pathlib import Path

from robolearn.errors import UserError, printable

LONGEST_NAME = 255
"""Bytes that file systems take in a name."""

LARGEST_NUMBER = 10**9
"""Of a chunk, a file or an episode."""


def conf_dir() -> Path:
    """The folder of the configuration files: inside the installed package, or at the top of a checkout.

    Raises:
        UserError: It is in neither.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise UserError(
        f"The configuration files are not beside {package}", key=str(package / "conf"), fix="install robolearn again"
    )


def cache_dir() -> Path:
    """The folder of all caches: ``$ROBOLEARN_CACHE``, else ``~/.cache/robolearn``."""
    return Path(os.environ.get("ROBOLEARN_CACHE") or "~/.cache/robolearn").expanduser()


def path_part(name: object, where: str, *, key: str | None = None, longest: int = LONGEST_NAME) -> str:
    """A name that may become one part of a path, on any system.

    Args:
        name: What a file or a command line says.
        where: What it is and where it stands, for the message.
        key: Of the error; `where` if None.
        longest: Most bytes.

    Raises:
        UserError: It could lead elsewhere, or is no name of a file.
    """
    reason = _unfit(name if isinstance(name, str) else None, longest)
    if reason is None:
        return str(name)
    shown = printable(str(name), lines=False)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}…"
    raise UserError(
        f"{where} {shown!r} {reason}, so it cannot be a part of a path",
        key=key or where,
        fix="give another name, of letters, digits, '.', '_' and '-'",
    )


@functools.lru_cache(4096)
def _unfit(name: object, longest: int) -> str | None:
    if not isinstance(name, str):
        return "is no text"
    if not name.strip(". "):
        return "names no file"
    if found := re.search(r"[/\\]|^~|^[A-Za-z]:", name):
        return f"holds {found[0]!r}"
    if name != printable(name, lines=False):
        return "holds control characters"
    size = len(name.encode())
    return f"has {size} bytes, more than {longest}" if size > longest else None


def fill_template(template: object, where: str, *, key: str | None = None, **parts: object) -> str:
    """The path, relative to a root, that a template such as ``data/chunk-{chunk:03d}/{file}.mp4`` makes.

    Only the placeholders that are given, bare or with a width such as ``03d``, are understood.

    Args:
        template: What a file says.
        where: What it is and where it stands, for messages.
        key: Of the error; `where` if None.
        parts: Numbers from 0, or names.

    Raises:
        UserError: It has other placeholders or formatting, a part is unfit, or the path leads out of the root.
    """
    fix = "write the dataset again"
    fields = _fields(template, tuple(parts)) if isinstance(template, str) else None
    if fields is None or any(style and isinstance(parts[name], str) for _, name, style in fields if name):
        raise UserError(
            f"{where} {_shown(template)} is no template of this format, whose placeholders are "
            f"{', '.join(f'{{{name}}}' for name in parts)}, with a width such as {{NAME:03d}} for numbers",
            key=key or where,
            fix=fix,
        )
    filled = []
    for literal, name, style in fields:
        value = parts.get(name, "")
        if isinstance(value, str):
            filled += [literal, path_part(value, where, key=key) if name else ""]
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < LARGEST_NUMBER:
            message = f"{where}: {name} is {_shown(value)}, which should be a number from 0"
            raise UserError(message, key=key or where, fix=fix)
        filled += [literal, format(value, style)]
    given = "".join(filled)
    pieces = given.split("/")
    if any(piece in ("", ".", "..") for piece in pieces):
        raise UserError(
            f"{where} {_shown(template)} leads to {_shown(given)}, which is no path below the dataset's folder",
            key=key or where,
            fix=fix,
        )
    for piece in pieces:
        path_part(piece, where, key=key)
    return given


@functools.lru_cache(256)
def _fields(template: str, names: tuple[str, ...]) -> list[tuple[str, str, str]] | None:
    """The parts of a template as (text, placeholder, style); None if it holds anything but what is understood."""
    fields = []
    try:
        for text, name, style, conversion in string.Formatter().parse(template):
            if name is not None and (name not in names or conversion or not re.fullmatch(r"(0\d)?d?", style or "")):
                return None
            fields.append((text, name or "", style or ""))
    except ValueError:
        return None
    return fields


def _shown(value: object) -> str:
    text = repr(printable(value, lines=False) if isinstance(value, str) else value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def inside(root: Path, name: str, *, key: str | None = None) -> Path:
    """The file of a name below a root, wherever links in the name lead: in the root, or to what the hub's cache holds.

    Args:
        root: A dataset or a checkpoint; may itself be a link.
        name: Relative to it, as a file of it says.
        key: Of the error; the file if None.

    Raises:
        UserError: It leads out of the root.
    """
    path = root / name
    if not _may_leave(root, name):
        return path
    home = root.resolve()
    try:
        found = (home / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a circle of links, or a NUL
        found = None
    if found is not None and any(found.is_relative_to(place) for place in (home, *_blobs(home))):
        return path
    shown = printable(name, lines=False)
    raise UserError(
        f"{root}: {shown} leads out of that folder",
        key=key or str(root / shown),
        fix="put the file itself there, if you trust who made the folder",
    )


def _may_leave(root: Path, name: str) -> bool:
    """Whether a name may lead out of its root: a part goes up, or is a link. Resolving every path takes far longer."""
    if name.startswith("/") or ".." in name or "\0" in name:
        return True
    parts = name.split("/")
    return any((root / "/".join(parts[: depth + 1])).is_symlink() for depth in range(len(parts)))


def _blobs(home: Path) -> list[Path]:
    """Where the Hugging Face hub's cache keeps the files that a snapshot links to: its own, and those shared by all."""
    for folder in (home, *home.parents):
        if folder.parent.name == "snapshots" and re.match(r"(models|datasets|spaces)--", folder.parent.parent.name):
            repository = folder.parent.parent
            return [repository / "blobs", repository.parent / "blobs"]
    return []
