"""Writing files so that nothing already saved is lost: aside first, then renamed."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from shadowpeft.errors import CheckpointError


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write several files of one folder so that either all are new or all are as they were.

    Each writer gets a path beside its final name. Only when every one is written in full are they renamed into place.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or a file stands where the folder should be.
    """
    partial = {name: folder / f".{name}.partial" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            write(partial[name])
            with open(partial[name], "rb") as file:
                os.fsync(file.fileno())
        for name, path in partial.items():
            os.replace(path, folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not save to {folder}: {error}; what was saved there before is unchanged") from error
    finally:
        for path in partial.values():
            if folder.is_dir():
                path.unlink(missing_ok=True)


def text(content: str) -> Callable[[Path], object]:
    """Return a writer of UTF-8 text for `write_together`."""
    return lambda path: path.write_text(content, encoding="utf-8")
