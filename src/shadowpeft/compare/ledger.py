"""The record of a study: one JSON line per measurement, only ever appended to, and the settings it was begun with."""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TextIO

import yaml

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study, in_yaml
from shadowpeft.errors import CheckpointError, ConfigError, DataError
from shadowpeft.reporting import provenance
from shadowpeft.storage import atomic
from shadowpeft.storage.jsonable import finite

STUDY = "study.yaml"
# What may differ when a study is resumed; everything else would make it another study.
_FREE_ON_RESUME = ("output", "device", "workers", "eval_batch_size")
# What a file means that was written before there were these settings.
_WITHOUT = {"finalists": 1, "test_skip": 0, "tie_standard_errors": 0}
_UNMEASURED = (
    "metric value items correct calibration trainable trainable_with_heads steps train_seconds train_tokens_per_second peak_gb "
    "adapter_bytes ms_per_answer forgetting train_loss"
)
_NOTHING: dict[str, Any] = {**dict.fromkeys(_UNMEASURED.split()), "metrics": {}, "config": {}}

Row = dict[str, Any]


class Ledger:
    """The rows of a study in its folder; a context manager that keeps a second process from writing to it.

    Args:
        study: the study.

    Raises:
        ConfigError: the folder holds another study or something else, or another process is running this study.
        CheckpointError: the folder cannot be written.
        DataError: the record is damaged.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.folder = study, Path(study.output)
        self.path = self.folder / f"compare-{study.name}.jsonl"
        self.rows: list[Row] = []
        self._file: TextIO | None = None
        self._provenance = {
            "study": study.name,
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "workers": study.workers,
        }
        check_folder(study)

    def __enter__(self) -> "Ledger":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"the study's folder {self.folder} cannot be written ({error.strerror}); choose another output"
            ) from error
        try:
            _lock(self._file, self.folder)
            if self.is_new:
                atomic.write_together(self.folder, {STUDY: atomic.text(self.study.to_yaml())})
            self.rows = read(self.path, cut=True)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def is_new(self) -> bool:
        """Whether the folder holds no row yet; nothing is written to it before the ledger is entered."""
        return not _has_rows(self.folder)

    def forget_failures(self) -> None:
        """Take failed cells as not run, but for those that could make the test split count twice.

        A final cell with a measurement stays as it is, and so does the whole search once the test split has been read: a trial that
        only now succeeds could change what is measured on it.
        """
        closed = has_read_test(self.rows)
        self.rows = [
            row for row in self.rows if row["status"] == "ok" or (closed and row["stage"] == "search")
        ]

    def write(self, cell: Cell, rows: Sequence[Row], device: str) -> None:
        """Append a cell's rows, all together, and see them to the disk."""
        assert self._file is not None, "the ledger is written inside its context"
        assert all(row["key"] == cell.key for row in rows), "a cell has rows of its own alone"
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {**self._provenance, "device": device, "time": time, "parts": len(rows)}
        complete = [{**row, **facts, "part": number} for number, row in enumerate(rows, start=1)]
        self._file.write(
            "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in complete)
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows = _current([*self.rows, *complete])


def failed(cell: Cell, status: str, error: str) -> list[Row]:
    """Make the row of a cell that came to nothing."""
    split = {"search": "validation", "final": "test", "cost": "none"}[cell.stage]
    facts = {
        "model": cell.model,
        "task": cell.task,
        "trained_on": cell.task,
        "method": cell.method,
        "mode": "attached",
        "split": split,
    }
    settings = {"rank": cell.rank, "seed": cell.seed, **cell.setting._asdict()}
    return [
        {
            "stage": cell.stage,
            "status": status,
            "error": error,
            "key": cell.key,
            **facts,
            **settings,
            **_NOTHING,
        }
    ]


def has_read_test(rows: Iterable[Row]) -> bool:
    """Tell whether something was measured on the test split."""
    return any(row["stage"] == "final" and row["status"] == "ok" for row in rows)


def read(path: Path, cut: bool = False) -> list[Row]:
    """Read the rows of a record; failures that a later run of the same cell has replaced are left out.

    A cell that a kill cut short, in a line or between two, is left out with a warning: it is to be run again.

    Args:
        path: the file; where there is none, there are no rows.
        cut: whether to take what is left out off the file, too.

    Raises:
        DataError: a line is damaged; the message names it.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    whole = len(lines) - (bool(lines) and not lines[-1].endswith(b"\n"))
    rows = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines[:whole], start=1)]
    while rows and rows[-1]["part"] != rows[-1]["parts"]:
        rows.pop()
    if len(rows) < len(lines):
        warnings.warn(f"{path}: the last cell was cut short; it is left out and run again", stacklevel=2)
        if cut:
            os.truncate(path, sum(map(len, lines[: len(rows)])))
    return _current(rows)


def _parse(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line)
        return {**row, "key": row["key"], "part": row["part"], "parts": row["parts"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{where}: expected a row of a study, got a line that is damaged ({error}); delete it to run its cell again"
        ) from error


def _current(rows: Sequence[Row]) -> list[Row]:
    """Leave out the failures of cells that were run again: of each cell the last block counts."""
    last = {row["key"]: number for number, row in enumerate(rows) if row["part"] == 1}
    return [row for number, row in enumerate(rows) if number >= last[row["key"]]]


def _lock(file: TextIO, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # a system without such locks
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(
            f"another process is running the study in {folder}; wait for it, or choose another output folder"
        ) from None


# The folder


def check_folder(study: Study) -> None:
    """Refuse a folder that holds another study, this one under other settings, something that is no study, or a user's own file.

    Raises:
        ConfigError: it does; the message says what to do.
    """
    folder = Path(study.output)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output must be a folder, {folder} is a file; choose another")
    if not (folder / STUDY).exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(
                f"the output folder {folder} holds something other than a study (it has no {STUDY}); choose another or empty it"
            )
        return
    if not _has_rows(folder):  # begun, and stopped before anything was measured
        _refuse_to_overwrite(folder / STUDY)
        return
    before = {**_WITHOUT, **_read_settings(folder / STUDY)}
    now = yaml.safe_load(study.to_yaml())
    if before.get("name") != now["name"]:
        raise ConfigError(
            f"{folder} holds the study {before.get('name')!r}, not {now['name']!r}; choose another output folder for a second study"
        )
    changed = [name for name in now if name not in _FREE_ON_RESUME and before.get(name) != now[name]]
    if not changed:
        return
    what = ", ".join(f"{name} was {before.get(name)!r}, is {now[name]!r}" for name in changed)
    if has_read_test(read(folder / f"compare-{study.name}.jsonl")):
        raise ConfigError(
            f"this study has read its test split; start a new one in a new folder to change its settings, or set them back ({what})"
        )
    raise ConfigError(
        f"{folder} holds this study under other settings ({what}); set them back, or choose another output folder"
    )


def _refuse_to_overwrite(path: Path) -> None:
    """Refuse a study file that a user wrote or changed: one of this program's holds its values in its own words, and no remarks."""
    try:
        content = path.read_text(encoding="utf-8")
        is_ours = content == in_yaml(yaml.safe_load(content))
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        is_ours = False
    if not is_ours:
        raise ConfigError(
            f"{path} was written or changed by hand, and a study in {path.parent} would overwrite it; rename it, or choose another output "
            "folder"
        )


def _has_rows(folder: Path) -> bool:
    return any(path.stat().st_size for path in folder.glob("compare-*.jsonl"))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML, so the study cannot be resumed: {error}") from error
    return settings if isinstance(settings, dict) else {}


# Provenance
