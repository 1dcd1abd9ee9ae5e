"""Find the folder of a dataset: local, in the cache of the Hugging Face hub, or downloaded on request."""

import os
from pathlib import Path

from robolearn.errors import UserError, first_line


def find_root(repo_id: str | None, root: str | None, revision: str | None, download: bool) -> Path:
    """The folder of a dataset.

    Looks into `root` if that is given; else for `repo_id` below ``$HF_LEROBOT_HOME`` (by default
    ``~/.cache/huggingface/lerobot``), then in the hub's own cache. Only `download` lets it use the network.

    Raises:
        UserError: The dataset is not found there; the message names the alternatives.
    """
    if root is not None:
        folder = Path(root).expanduser()
        if (folder / "meta" / "info.json").is_file() or not (download and repo_id):
            return _existing(folder)
        return _download(repo_id, revision, folder)
    if not repo_id:
        raise UserError(
            "No dataset is named: give dataset.root=FOLDER, or the dataset.repo_id=NAME/DATASET of one on the hub.",
            key="dataset.repo_id",
        )
    folder = _lerobot_home() / repo_id
    if revision is None and (folder / "meta" / "info.json").is_file():
        return folder
    found = _in_hub_cache(repo_id, revision)
    if found is not None and (found / "meta" / "info.json").is_file() and not download:
        return found
    if download:
        return _download(repo_id, revision, None)
    raise UserError(
        f"Dataset {repo_id!r} is not on this machine: name its folder by dataset.root=FOLDER, record one with "
        "robolearn-collect, or let it be fetched with dataset.download=true.",
        key="dataset.repo_id",
    )


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(
            f"dataset.root={folder} is no folder: name one that holds a LeRobot dataset, record one with "
            "robolearn-collect, or leave dataset.root out and fetch dataset.repo_id with dataset.download=true.",
            key="dataset.root",
        )
    if not (folder / "meta" / "info.json").is_file():
        raise UserError(
            f"dataset.root={folder} holds no meta/info.json: name the folder of a LeRobot dataset "
            "(v2.0, v2.1 or v3.0), which has meta/ and data/ in it.",
            key="dataset.root",
        )
    return folder


def _lerobot_home() -> Path:
    home = os.environ.get("HF_LEROBOT_HOME")
    if home:
        return Path(home).expanduser()
    return Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "lerobot"


def _in_hub_cache(repo_id: str, revision: str | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", revision=revision, local_files_only=True))
    except HFValidationError:
        raise UserError(
            f"dataset.repo_id={repo_id} is no hub id, which reads NAME/DATASET: for a folder use dataset.root.",
            key="dataset.repo_id",
        ) from None
    except LocalEntryNotFoundError:
        return None


def _download(repo_id: str | None, revision: str | None, folder: Path | None) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    assert repo_id is not None
    if constants.HF_HUB_OFFLINE:
        found = _in_hub_cache(repo_id, revision) if folder is None else None
        if found is not None:
            return found
        raise UserError(
            f"Dataset {repo_id!r} is not on this machine, and HF_HUB_OFFLINE forbids dataset.download=true: "
            "unset HF_HUB_OFFLINE, or name the dataset's folder by dataset.root=FOLDER.",
            key="dataset.download",
        )
    try:
        found = snapshot_download(repo_id, repo_type="dataset", revision=revision, local_dir=folder)
    except HFValidationError:
        raise UserError(
            f"dataset.repo_id={repo_id} is no hub id, which reads NAME/DATASET.", key="dataset.repo_id"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise UserError(
            f"Dataset {repo_id!r} could not be fetched from the hub ({reason}): look at dataset.repo_id and the "
            "network, or name a folder that holds it by dataset.root=FOLDER.",
            key="dataset.repo_id",
        ) from None
    return Path(found)
