"""The ledger of a study: its file of records, only ever appended to, and open in one process at a time."""

import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TextIO

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.extension import extended_places
from shadowpeft.compare.records import Record, current, has_read_test, read
from shadowpeft.compare.study import Study
from shadowpeft.compare.study_folder import STUDY, check_folder, has_records, records_path
from shadowpeft.errors import CheckpointError, ConfigError
from shadowpeft.reporting import provenance
from shadowpeft.storage import atomic
from shadowpeft.storage.jsonable import finite


class Ledger:
    """The records of a study in its folder; a context manager that keeps a second process from writing to it.

    Args:
        study: the study.

    Raises:
        ConfigError: the folder holds another study or something else, or another process is running this
            study.
        CheckpointError: the folder cannot be written.
        DataError: the file of records is damaged.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.folder = study, Path(study.output)
        self.path = records_path(study)
        self.records: list[Record] = []
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
                f"the study's folder {self.folder} cannot be written ({error.strerror}); "
                "choose another output"
            ) from error
        try:
            # The lock comes first: a second process must not overwrite the study file of the first.
            _lock(self._file, self.folder)
            if self.is_new:
                atomic.write_together(self.folder, {STUDY: atomic.text(self.study.to_yaml())})
            self.records = read(self.path, cut=True)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def is_new(self) -> bool:
        """Whether the folder holds no record yet; nothing is written to it before the ledger is entered."""
        return not has_records(self.folder)

    def forget_failures(self) -> None:
        """Count failed cells as not run, except those that could make the test split count twice.

        A final cell with a measurement stays as it is. So does the whole search once the test split has been
        read: a trial that succeeds only then could change what is measured on it. And so does the search of a
        model and task that has been extended: from another value of its trials another one would follow.
        """
        closed, extended = has_read_test(self.records), extended_places(self.study, self.records)
        self.records = [
            record
            for record in self.records
            if record["status"] == "ok"
            or (
                record["stage"] == "search"
                and (closed or (record["model"], record["trained_on"]) in extended)
            )
        ]

    def write(self, cell: Cell, records: Sequence[Record], device: str) -> None:
        """Append all records of a cell at once, and wait until they are on the disk."""
        assert self._file is not None, "the ledger is written inside its context"
        assert all(record["key"] == cell.key for record in records), "a cell has records of its own alone"
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {**self._provenance, "device": device, "time": time, "parts": len(records)}
        complete = [{**record, **facts, "part": part} for part, record in enumerate(records, start=1)]
        self._file.write("".join(_line(record) for record in complete))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records = current([*self.records, *complete])


def _line(record: Record) -> str:
    return json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"


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
