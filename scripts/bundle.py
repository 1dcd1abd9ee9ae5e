#!/usr/bin/env python3
"""Carry robolearn to a machine without a network: build a bundle of wheels where there is one, install it where not.

    scripts/bundle.py build FOLDER [--python 3.11] [--platform manylinux_2_28_x86_64] [--extra optuna]
                      [--max-mb N] [--part-mb N] [--strip] [--compress] [-- PIP_OPTION ...]
    FOLDER/bundle.py install FOLDER VENV          # there; needs Python of that version only

PIP_OPTION goes to pip download, such as --index-url https://download.pytorch.org/whl/cpu for torch without CUDA.
"""

import argparse
import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = 1 << 20
MANIFEST = "manifest.json"


def main(argv: list[str] | None = None) -> None:
    """Build or install."""
    arguments, options = list(sys.argv[1:] if argv is None else argv), []
    if "--" in arguments:
        place = arguments.index("--")
        arguments, options = arguments[:place], arguments[place + 1 :]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="download the wheels, and pack them")
    build.add_argument("folder", type=Path)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    build.add_argument("--python", default=here, help=f"version that the target has (default: {here})")
    build.add_argument("--platform", default="manylinux_2_28_x86_64", help="the newest tag that the target takes")
    build.add_argument("--project", type=Path, default=ROOT, help=argparse.SUPPRESS)
    build.add_argument("--extra", action="append", default=[], help="an extra of robolearn, such as optuna")
    build.add_argument("--max-mb", type=float, help="refuse a larger bundle, and name its largest wheels")
    build.add_argument("--part-mb", type=float, help="split it into files of this size")
    build.add_argument("--strip", action="store_true", help="take debug symbols out of libraries; needs strip")
    build.add_argument("--compress", action="store_true", help="one xz over all, smaller than wheels and slower")
    install = commands.add_parser("install", help="into a virtual environment, which is made where there is none")
    install.add_argument("folder", type=Path)
    install.add_argument("venv", type=Path)
    given = parser.parse_args(arguments)
    if given.command == "install":
        install_bundle(given.folder, given.venv)
        return
    if given.python != here:
        # pip decides by the Python that runs it which dependencies there are.
        other = shutil.which(f"python{given.python}")
        if not other:
            raise SystemExit(f"--python {given.python}: start this with python{given.python}, which is not found here.")
        raise SystemExit(subprocess.call([other, __file__, *(sys.argv[1:] if argv is None else argv)]))
    build_bundle(given, options)


def build_bundle(given: argparse.Namespace, options: list[str]) -> None:
    """Fill the folder with the bundle's parts, a manifest and this script."""
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    if left := [path.name for path in folder.iterdir()]:
        raise SystemExit(f"{folder} is not empty ({left[0]}); give a folder of its own.")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        wheels = Path(temporary) / "wheels"
        project = download(wheels, given, options)
        if given.strip or given.compress:
            for wheel in sorted(wheels.iterdir()):
                repack(wheel, given.strip, stored=given.compress)
        packed = Path(temporary) / "bundle"
        with tarfile.open(packed, "w:xz" if given.compress else "w") as archive:
            archive.add(wheels, "wheels")
        sizes = {wheel.name: wheel.stat().st_size for wheel in sorted(wheels.iterdir())}
        check_size(packed.stat().st_size, sizes, given.max_mb)
        parts = split(packed, folder, given.part_mb)
    sums = {part.name: checksum(part) for part in parts}
    content = {"project": project, "python": given.python, "platform": given.platform, "wheels": sizes, "parts": sums}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n")
    shutil.copy(__file__, folder / "bundle.py")
    total = sum(part.stat().st_size for part in parts)
    print(f"{folder}: {len(sizes)} wheels in {len(parts)} part(s), {total / 1e6:.0f} MB; carry the folder over and run")
    print(f"  python{given.python} {folder.name}/bundle.py install {folder.name} VENV")


def download(wheels: Path, given: argparse.Namespace, options: list[str]) -> str:
    """Get robolearn's own wheel and all it needs; returns what pip is to install."""
    wheels.mkdir()
    own = ["--no-build-isolation"] if "--no-build-isolation" in options else []
    pip("wheel", "--no-deps", "--quiet", *own, "--wheel-dir", str(wheels), str(given.project))
    (wheel,) = wheels.iterdir()
    # By its file: an index may have a stranger's project of the same name.
    project = wheel.name + (f"[{','.join(given.extra)}]" if given.extra else "")
    wanted = ["--only-binary=:all:", "--implementation=cp", f"--python-version={given.python}"]
    wanted += [f"--platform={tag}" for tag in platforms(given.platform)]
    if given.project == ROOT and given.python == "3.11":
        wanted += ["--constraint", str(ROOT / "constraints.txt")]
    rest = [option for option in options if option not in own]
    places = ["--dest", str(wheels), "--find-links", str(wheels)]
    command = ["download", "--progress-bar=off", *places, *wanted, *rest, str(wheels / project)]
    built: set[str] = set()
    while (done := pip(*command, check=False)).returncode:
        missing = without_wheel(done.stdout + done.stderr)
        if missing is None or missing in built:
            break
        build_pure(missing, wheels)
        built.add(missing)
    else:
        return project
    raise SystemExit(f"pip could not get the wheels:\n{done.stderr[-2000:]}")


def without_wheel(output: str) -> str | None:
    """The one requirement that pip found no wheel of, by what it printed."""
    if found := re.search(r"No matching distribution found for (\S+)", output):
        return found[1].split(";")[0]
    wanted = re.findall(r"^ +\S.* depends on ([^\s;]+)", output, re.MULTILINE)
    return wanted[0] if wanted and len({re.split(r"[^\w.-]", each)[0] for each in wanted}) == 1 else None


def build_pure(requirement: str, wheels: Path) -> None:
    """Build a wheel of what has none; only Python itself goes everywhere."""
    before = set(wheels.iterdir())
    done = pip("wheel", "--no-deps", "--quiet", "--wheel-dir", str(wheels), requirement, check=False)
    made = [path for path in wheels.iterdir() if path not in before]
    if done.returncode or not made:
        raise SystemExit(f"{requirement} has no wheel for the target, and none can be built:\n{done.stderr[-1000:]}")
    if not made[0].name.endswith("-none-any.whl"):
        raise SystemExit(f"{requirement} has no wheel for the target, and needs a compiler there.")


def platforms(tag: str) -> list[str]:
    """A platform's tag, and the older ones that it takes as well."""
    found = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", tag)
    if not found:
        return [tag, "any"] if tag != "any" else [tag]
    newest, machine = int(found[1]), found[2]
    named = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, 4, -1)]
    return [*tags, *(f"{old}_{machine}" for minor, old in named.items() if minor <= newest), f"linux_{machine}"]


def repack(wheel: Path, strip: bool, stored: bool) -> None:
    """Write a wheel anew: libraries without debug symbols, contents uncompressed for a better compression of all."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
            modes = {info.filename: info.external_attr for info in archive.infolist()}
        for library in folder.rglob("*.so*") if strip else ():
            subprocess.run(["strip", "--strip-debug", str(library)], capture_output=True)  # not every one is ELF
        (record,) = folder.glob("*.dist-info/RECORD")
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path != record)
        lines = [f"{quoted(path.relative_to(folder))},sha256={digest(path)},{path.stat().st_size}" for path in files]
        record.write_text("\n".join([*lines, f"{record.relative_to(folder)},,", ""]))
        kind = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(wheel, "w", kind) as archive:
            for path in [*files, record]:
                name = path.relative_to(folder).as_posix()
                archive.write(path, name)
                archive.getinfo(name).external_attr = modes.get(name, archive.getinfo(name).external_attr)


def quoted(path: Path) -> str:
    """As a field of RECORD, which is CSV."""
    text = path.as_posix()
    return f'"{text}"' if "," in text else text


def digest(path: Path) -> str:
    """A file's SHA-256 as RECORD has it."""
    return base64.urlsafe_b64encode(bytes.fromhex(checksum(path))).rstrip(b"=").decode()


def check_size(size: int, wheels: dict[str, int], most: float | None) -> None:
    """Refuse a bundle that is too large."""
    if most is not None and size > most * 1e6:
        largest = sorted(wheels.items(), key=lambda item: -item[1])[:5]
        named = ", ".join(f"{name.split('-')[0]} {bytes_ / 1e6:.0f}" for name, bytes_ in largest)
        raise SystemExit(f"The bundle has {size / 1e6:.0f} MB, more than --max-mb {most:g}; largest, in MB: {named}.")


def split(packed: Path, folder: Path, part_mb: float | None) -> list[Path]:
    """Cut a file into parts ``bundle.000``, ``bundle.001``, ...; moved as a whole without a size."""
    left = int(part_mb * 1e6) if part_mb else packed.stat().st_size
    parts = []
    with packed.open("rb") as source:
        while first := source.read(min(BLOCK, left)):
            parts.append(folder / f"bundle.{len(parts):03d}")
            with parts[-1].open("wb") as target:
                target.write(first)
                room = left - len(first)
                while room and (block := source.read(min(BLOCK, room))):
                    target.write(block)
                    room -= len(block)
    return parts


def install_bundle(folder: Path, venv: Path) -> None:
    """Check the parts, and install from them alone."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except OSError:
        raise SystemExit(f"{folder} holds no bundle: {MANIFEST} is missing.") from None
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if here != manifest["python"]:
        raise SystemExit(f"The bundle is for Python {manifest['python']}, this is {here}; start this with that one.")
    for name, expected in manifest["parts"].items():
        part = folder / name
        if not part.is_file() or checksum(part) != expected:
            raise SystemExit(f"{part} is missing or not what was built; carry it over again.")
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        packed = Path(temporary) / "bundle"
        with packed.open("wb") as target:
            for block in (block for name in manifest["parts"] for block in blocks(folder / name)):
                target.write(block)
        with tarfile.open(packed) as archive:
            archive.extractall(temporary, filter="data")
        if not (venv / "bin" / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        command = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-index"]
        wheels = str(Path(temporary) / "wheels")
        # Configured links and indexes lead to a network.
        subprocess.run([*command, "--isolated", "--find-links", wheels, f"{wheels}/{manifest['project']}"], check=True)
    print(f"Installed into {venv}: {venv}/bin/robolearn-train --help")


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    found = hashlib.sha256()
    for block in blocks(path):
        found.update(block)
    return found.hexdigest()


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, a piece at a time."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block


def pip(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run this Python's pip."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"pip {arguments[0]} failed:\n{done.stderr[-2000:]}")
    return done


if __name__ == "__main__":
    main()
