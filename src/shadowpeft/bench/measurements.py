"""The measurements of a run in a file with those of earlier runs.

The file is written anew after every turn, so that what is measured is never lost.
"""

import json
import secrets
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from shadowpeft.errors import DataError
from shadowpeft.storage import atomic
from shadowpeft.storage.jsonable import finite

Measurement = dict[str, Any]


class MeasurementFile:
    """The file of a run's measurements: one for each key, replaced as more rounds are measured.

    Args:
        path: the file. Whether its folder can be written is found out at once, before any work.

    Raises:
        CheckpointError: it cannot be written.
        DataError: the file holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = f"{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
        self.measurements: dict[str, Measurement] = {}
        read(path)
        atomic.write_together(path.absolute().parent, {})

    def put(self, key: str, measurement: Measurement) -> None:
        """Add a measurement, or put it in place of the one with the same key."""
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.measurements[key] = {**measurement, "run": self.run, "time": time}
        self._write()

    def withdraw(self) -> None:
        """Remove every measurement of this run."""
        if self.measurements:
            self.measurements.clear()
            self._write()

    def _write(self) -> None:
        # Read again, since another run may have written to the file meanwhile.
        others = [entry for entry in read(self.path) if entry["run"] != self.run]
        lines = [json.dumps(entry, ensure_ascii=False) for entry in others]
        lines += [
            json.dumps(finite(entry), ensure_ascii=False, allow_nan=False)
            for entry in self.measurements.values()
        ]
        content = "".join(f"{line}\n" for line in lines)
        atomic.write_together(self.path.absolute().parent, {self.path.name: atomic.text(content)})


def read(path: Path) -> list[Measurement]:
    """Read the measurements of a file; if there is no file, there are none.

    Raises:
        DataError: a line is not a measurement; the message names it.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a file of JSON lines ({error}); choose another output") from error
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]


def last_run(measurements: Sequence[Measurement], run: str | None = None) -> list[Measurement]:
    """Return the measurements of a run, by default of the last one in the file.

    Raises:
        DataError: there is no such run.
    """
    runs = list(dict.fromkeys(entry["run"] for entry in measurements))
    if run is None and runs:
        run = runs[-1]
    if run not in runs:
        raise DataError(f"there is no run {run!r} in the file; there are: {', '.join(runs) or 'none'}")
    return [entry for entry in measurements if entry["run"] == run]


def _parse(line: str, where: str) -> Measurement:
    try:
        entry = json.loads(line)
        return {**entry, "run": entry["run"], "method": entry["method"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: expected a measurement, got something else ({error}); choose another output"
        ) from error
