"""The rows of a run in a file with those of earlier runs, written anew after every turn: what is measured is never lost."""

import json
import secrets
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from shadowpeft.errors import DataError
from shadowpeft.storage import atomic
from shadowpeft.storage.jsonable import finite

Row = dict[str, Any]


class Record:
    """One row for each line of the table, told from others by its `key`, replaced as more rounds are measured.

    Args:
        path: the file. A folder that cannot be written to is found out at once, before any work.

    Raises:
        CheckpointError: it cannot be written.
        DataError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self.rows: dict[str, Row] = {}
        read(path)
        atomic.write_together(path.absolute().parent, {})

    def put(self, key: str, row: Row) -> None:
        """Add a row, or put it in place of the one of the same key."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.rows[key] = {**row, "run": self.run, "time": time}
        self._write()

    def withdraw(self) -> None:
        """Take every row of this run back."""
        if self.rows:
            self.rows.clear()
            self._write()

    def _write(self) -> None:
        kept = [json.dumps(row, ensure_ascii=False) for row in read(self.path) if row["run"] != self.run]
        own = [json.dumps(finite(row), ensure_ascii=False, allow_nan=False) for row in self.rows.values()]
        content = "".join(f"{line}\n" for line in [*kept, *own])
        atomic.write_together(self.path.absolute().parent, {self.path.name: atomic.text(content)})


def read(path: Path) -> list[Row]:
    """Read the rows of a file; where there is none, there are no rows.

    Raises:
        DataError: a line is not a row; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a file of JSON lines ({error}); choose another output") from error
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def last_run(rows: Sequence[Row], run: str | None = None) -> list[Row]:
    """Choose the rows of a run, by default the last one in the file.

    Raises:
        DataError: there is no such run.
    """
    runs = list(dict.fromkeys(row["run"] for row in rows))
    chosen = run if run is not None else runs[-1] if runs else None
    if chosen not in runs:
        raise DataError(f"there is no run {chosen!r} in the file; there are: {', '.join(runs) or 'none'}")
    return [row for row in rows if row["run"] == chosen]


def _parse(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
        return {**row, "run": row["run"], "method": row["method"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: expected a row of a measurement, got something else ({error}); choose another output"
        ) from error
