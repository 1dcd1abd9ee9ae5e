"""The folders of configuration files and caches."""

import os
from pathlib import Path

from robolearn.errors import UserError


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
