"""Folders on the Hugging Face hub: fetched into its cache at one commit, then read like any other folder."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from shadowpeft.errors import CheckpointError


def is_hub_id(source: str | Path) -> bool:
    """Return whether a source can be a repository of the hub: `user/name`, and no folder here."""
    if not isinstance(source, str) or source.count("/") != 1 or Path(source).exists():
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def local(
    source: str | Path, files: Iterable[str], revision: str | None = None, subfolder: str | None = None
) -> Path:
    """Return the local folder of a source, which is fetched if it is a hub id.

    Args:
        source: a folder, or a hub id such as `user/name`.
        files: names of the files that are wanted; others are not fetched.
        revision: branch, tag or commit of a hub id.
        subfolder: path below the source.

    Raises:
        CheckpointError: a revision is given with a folder, or the hub does not have or give what is asked
            for.
    """
    below = Path(subfolder or "")
    if below.is_absolute() or ".." in below.parts:
        raise CheckpointError(f"subfolder must be a path below the adapter's source, got {subfolder!r}")
    if not is_hub_id(source):
        if revision is not None:
            raise CheckpointError(
                f"a revision belongs to a hub id such as user/name, and {source} is a folder; leave out the "
                "revision"
            )
        return Path(source) / below
    try:
        snapshot = snapshot_download(
            str(source), revision=revision, allow_patterns=[(below / name).as_posix() for name in files]
        )
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {source} here and no repository of that name on the hub that you may read"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"the hub's {source} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {source} here, the hub cannot be reached, and its cache does not hold "
            f"{source}{_at(revision)}; check the path and the connection"
        ) from error
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"{source}{_at(revision)} could not be fetched from the hub: {' '.join(str(error).split())}"
        ) from error
    return Path(snapshot) / below


def _at(revision: str | None) -> str:
    return "" if revision is None else f" at {revision}"
