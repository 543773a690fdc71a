"""The records of a study: one JSON line for each measurement, or for a cell that failed."""

import json
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.errors import DataError

Record = dict[str, Any]

_UNMEASURED = (
    "metric value items correct calibration trainable trainable_with_heads steps train_seconds "
    "train_tokens_per_second peak_gb adapter_bytes ms_per_answer forgetting train_loss"
)
_NOTHING: Record = {**dict.fromkeys(_UNMEASURED.split()), "metrics": {}, "config": {}}
_SPLIT = {"search": "validation", "final": "test", "cost": "none"}


def identity(cell: Cell, status: str, error: str | None) -> Record:
    """Return the fields that say which cell a record belongs to and how its run ended."""
    return {
        "stage": cell.stage,
        "status": status,
        "error": error,
        "key": cell.key,
        "model": cell.model,
        "task": cell.task,
        "trained_on": cell.task,
        "method": cell.method,
    }


def failed(cell: Cell, status: str, error: str) -> list[Record]:
    """Return the record of a cell in which nothing was measured."""
    where = {"mode": "attached", "split": _SPLIT[cell.stage], "rank": cell.rank, "seed": cell.seed}
    return [{**identity(cell, status, error), **where, **cell.setting._asdict(), **_NOTHING}]


def number(record: Mapping[str, Any], field: str) -> float | None:
    """Return a number of a record, such as `value` or `metrics.f1`; `None` if it has none that is finite."""
    outer, _, inner = field.partition(".")
    value = record.get(outer)
    if inner:
        value = (value or {}).get(inner)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def has_read_test(records: Iterable[Record]) -> bool:
    """Return whether something was measured on the test split."""
    return any(record["stage"] == "final" and record["status"] == "ok" for record in records)


def read(path: Path, cut: bool = False) -> list[Record]:
    """Read the records of a file, without failures that a later run of the same cell has replaced.

    If the program was killed while it wrote a cell, within a line or between two, a warning says that the
    cell is left out and has to run again.

    Args:
        path: the file; if there is none, there are no records.
        cut: whether to remove from the file, too, what is left out.

    Raises:
        DataError: a line is damaged; the message names it.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = len(lines) - (bool(lines) and not lines[-1].endswith(b"\n"))
    records = [_parse(line, f"{path}:{index}") for index, line in enumerate(lines[:whole], start=1)]
    while records and records[-1]["part"] != records[-1]["parts"]:
        records.pop()
    if len(records) < len(lines):
        warnings.warn(
            f"{path}: the last cell was cut short; it is left out and run again",
            stacklevel=2,
        )
        if cut:
            os.truncate(path, sum(map(len, lines[: len(records)])))
    return current(records)


def current(records: Sequence[Record]) -> list[Record]:
    """Leave out the failures of cells that have run again: of each cell the last block counts."""
    last = {record["key"]: index for index, record in enumerate(records) if record["part"] == 1}
    return [record for index, record in enumerate(records) if index >= last[record["key"]]]


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line)
        return {**record, "key": record["key"], "part": record["part"], "parts": record["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: expected a record of a study, got a line that is damaged ({error}); "
            "delete it to run its cell again"
        ) from error
