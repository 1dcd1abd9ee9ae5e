"""``robolearn-dataset``: look at a dataset, see whether it is sound, convert it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from robolearn.cli.entry import Parser, entry_point
from robolearn.errors import UserError


@entry_point
def main(argv: Sequence[str] | None = None) -> None:
    """The entry point; status 0 only for a sound dataset, 1 for one that is not, 2 for a mistake of the user's."""
    arguments = _parser().parse_args(argv)
    try:
        status = arguments.run(arguments)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        sys.stderr.close()
        status = 0
    raise SystemExit(status)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="robolearn-dataset", description="Look at LeRobot datasets (v2.0, v2.1, v3.0), verify and convert them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.add_argument("folder", type=Path, metavar="DIR", help="the dataset's folder")
        command.set_defaults(run=run)
        return command

    add("verify", _verify, "read every file, decode every frame and compute every statistic again")
    add("info", _info, "print what a dataset holds")
    convert = add("convert", _convert, "write a dataset in another format's layout")
    convert.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    convert.add_argument("--to", required=True, choices=["v2.1", "v3.0"], help="the format")
    show = add("show", _show, "write a page with an episode's cameras and curves, and the distribution of all actions")
    show.add_argument("--episode", type=int, default=0, help="which episode it plays (default 0)")
    show.add_argument("--out", type=Path, help="the page's file (default: NAME_episode_N.html here)")
    return parser


def _root(arguments: argparse.Namespace) -> Path:
    from robolearn.data.lerobot_format.dataset_root import find_root

    if not arguments.folder.is_dir():
        raise UserError(
            f"{arguments.folder} is no folder: name one that holds a LeRobot dataset.", key=str(arguments.folder)
        )
    try:
        return find_root(None, str(arguments.folder), None, download=False)
    except UserError as error:
        raise UserError(str(error).replace("dataset.root=", "", 1), key=str(arguments.folder)) from error


def _verify(arguments: argparse.Namespace) -> int:
    from robolearn.data.lerobot_format.meta import read_meta
    from robolearn.data.lerobot_format.verify import verify

    root = _root(arguments)
    faults = verify(root)
    for fault in faults:
        print(fault)
    if faults:
        print(f"{root} is not sound: {len(faults)} fault{'s' if len(faults) > 1 else ''}.")
        return 1
    meta = read_meta(root)
    frames = sum(episode.length for episode in meta.episodes)
    cameras = f"{len(meta.cameras)} camera" + "s" * (len(meta.cameras) != 1)
    print(f"{root} is sound: {len(meta.episodes)} episodes, {frames:,} frames, {cameras}.")
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from robolearn.data.inspect.describe import describe

    print(describe(_root(arguments)))
    return 0


def _convert(arguments: argparse.Namespace) -> int:
    from robolearn.data.lerobot_format.convert import convert

    convert(_root(arguments), arguments.out, arguments.to)
    print(f"{arguments.out} holds the dataset in format {arguments.to}.")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from robolearn.data.inspect.html_viewer import show
    from robolearn.system.files import disk_full_as_user_error, write_text

    root = _root(arguments)
    page = show(root, arguments.episode)
    out = arguments.out or Path(f"{root.resolve().name}_episode_{arguments.episode}.html")
    with disk_full_as_user_error(out):
        try:
            write_text(out, page)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise UserError(
                f"--out={out} can't be written ({error.strerror}); give another file.", key="--out"
            ) from error
    print(f"The page is {out.resolve()}: open it in a browser.")
    return 0


if __name__ == "__main__":
    main()
