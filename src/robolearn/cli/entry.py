"""How commands end: with one sentence where something was wrong, and without a traceback where a user wants no more."""

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from robolearn.errors import UserError


def entry_point(main: Callable[[Sequence[str] | None], None]) -> Callable[..., None]:
    """A command whose mistakes are one sentence on stderr and status 2, and Ctrl-C one word and status 130."""

    @functools.wraps(main)
    def command(argv: Sequence[str] | None = None) -> None:
        try:
            main(argv)
        except UserError as error:
            exit_with(error)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            name = str(error.filename)
            exit_with(UserError(f"{name[:80]}...: {error.strerror}", key=name, fix="give a shorter name"))
        except KeyboardInterrupt:
            _say("\nStopped.")
            raise SystemExit(130) from None

    return command


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence as all others, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            UserError: Always.
        """
        raise UserError(f"The command line was not understood: {message}; see {self.prog} --help.")


def exit_with(error: UserError) -> NoReturn:
    """Print the sentence and end with status 2."""
    _say(str(error))
    raise SystemExit(2)


def _say(text: str) -> None:
    """Tell the user; of processes that train together the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr)
