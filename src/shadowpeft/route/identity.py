"""What a policy was made from, as hashes: the weights of an adapter, the rows of a data set."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from shadowpeft.errors import CheckpointError

_PIECE = 1 << 20


def hash_of_files(paths: Iterable[str | Path]) -> str:
    """Return the SHA-256 of files: their names and their contents, in this order.

    Raises:
        CheckpointError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in map(Path, paths):
        digest.update(f"{path.name}\0".encode())
        try:
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return digest.hexdigest()


def hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of rows, the same for a file and for the data set made of it."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()
