"""Writing files so that nothing already saved is lost."""

import os
import tempfile
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [name for name in writers if (folder / name).is_dir()]
        if taken:
            raise CheckpointError(
                f"could not save to {folder}: {taken[0]} is a folder there; nothing was written"
            )
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as aside:
            for name, write in writers.items():
                write(Path(aside) / name)
                with open(Path(aside) / name, "rb") as file:
                    os.fsync(file.fileno())
            for name in writers:
                os.replace(Path(aside) / name, folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"could not save to {folder}: {error}; what was saved there before is unchanged"
        ) from error


def text(content: str) -> Callable[[Path], object]:
    """Return a writer of UTF-8 text for `write_together`."""
    return lambda path: path.write_text(content, encoding="utf-8")
