"""Atomic writes: several files of a folder become new together, or stay as they were."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError

from shadowpeft.errors import CheckpointError


def write_together(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write several files of one folder so that either all are new or all are as they were.

    Args:
        folder: made if need be; its other files are left alone.
        writers: for each file, by its name, a function that writes it to the path it is given.

    Raises:
        CheckpointError: the disk is full, the folder cannot be written, or one path is a file where a folder
            must be, or a folder where a file must be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [name for name in writers if (folder / name).is_dir()]
        if taken:
            raise CheckpointError(
                f"could not save to {folder}: {taken[0]} is a folder there; nothing was written"
            )
        # Beside the final names, so on the same disk: only there is a rename one step that cannot fail
        # halfway.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as aside:
            for name, write in writers.items():
                write(Path(aside) / name)
                # Errors of the disk show here at the latest, while the old files still stand.
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
