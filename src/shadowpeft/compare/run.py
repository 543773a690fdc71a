"""A study from its settings to its table; if it is stopped, the same command goes on from there."""

import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.checks import check_data, check_models, check_numbers
from shadowpeft.compare.choice import Edge, edges
from shadowpeft.compare.ledger import Ledger
from shadowpeft.compare.records import Record, has_read_test, read
from shadowpeft.compare.schedule import expected, ready
from shadowpeft.compare.study import Study
from shadowpeft.compare.study_folder import STUDY, check_folder, records_path
from shadowpeft.compare.workers import RunCell, run_cells
from shadowpeft.errors import ConfigError
from shadowpeft.reporting.progress import progress_bar

# Writes table and plots to a folder and returns the results as plain values.
Report = Callable[[Study, list[Record], Path, list[Cell]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """The outcome of a study.

    Attributes:
        name: its name.
        output: its folder.
        rows: the file of its records.
        table: the Markdown table.
        cells: how many cells it has.
        done: how many of them were measured.
        failed: the cells that ended in an error, with that error.
        missing: the cells that could not run, since no trial of their method had a value.
        at_edge: the searches whose best learning rate is at the edge of those tried.
        waiting: how many cells of each stage have yet to run; none once the study is over.
        seconds: how long this session took.
        results: what the table shows, as plain values.
    """

    name: str
    output: str
    rows: str
    table: str
    cells: int
    done: int
    failed: dict[str, str]
    missing: list[str]
    at_edge: list[Edge]
    waiting: dict[str, int]
    seconds: float
    results: dict[str, Any]


def compare(
    study: Study, retry: bool = False, run_cell: RunCell | None = None, report: Report | None = None
) -> StudyResult:
    """Run what is left of a study and write its table and plots.

    Everything that can be checked without training or the test split is checked first. A cell that fails is
    recorded, and the study goes on.

    Args:
        study: the study.
        retry: run the cells again that failed in an earlier session, except where that could read the test
            split twice.
        run_cell: runs one cell, in place of the package's own.
        report: writes table and plots, in place of the package's own.

    Raises:
        UserError: settings, model, data or folder cannot be used; its type and message say which.
        KeyboardInterrupt: the study was stopped; what was measured is recorded and in the report.
    """
    began = time.perf_counter()
    ledger = Ledger(study)
    is_new = ledger.is_new
    if is_new:  # before the ledger is entered, so that a study that is refused leaves nothing behind
        _check(study)
    with ledger:
        if retry:
            ledger.forget_failures()
        if not is_new and (cells := ready(study, ledger.records)):
            _refuse_new_trials(cells, ledger.records)
            _check(study)
        run_cell, report = run_cell or _run_cell(), report or _report()
        with _stopping_as_ctrl_c(), _progress(study, ledger) as show:
            try:
                _run_stages(study, ledger, run_cell=run_cell, report=report, show=show)
            except KeyboardInterrupt:
                _report_unless_it_fails(report, study, ledger)
                raise
        return _finish(study, ledger.records, report=report, began=began)


def report_again(study: Study, report: Report | None = None) -> StudyResult:
    """Write table and plots anew from the records of a study, complete or not.

    Raises:
        ConfigError: there is no such study.
    """
    began = time.perf_counter()
    if not (Path(study.output) / STUDY).is_file():
        raise ConfigError(
            f"there is no study in {study.output}; give the folder of one as output, "
            "or leave out report_only to run it"
        )
    check_folder(study)
    return _finish(study, read(records_path(study)), report=report or _report(), began=began)


def _check(study: Study) -> None:
    check_models(study)
    check_numbers(study, check_data(study))


def _refuse_new_trials(cells: Sequence[Cell], found: Sequence[Record]) -> None:
    """Refuse to search once the test split has been read: a later version may have other built-in trials."""
    if cells[0].stage == "search" and has_read_test(found):
        raise ConfigError(
            f"this study has read its test split, and a trial that it would choose among has no record: "
            f"{cells[0].key}; it was searched by another version: start a new study in a new folder"
        )


def _run_stages(
    study: Study, ledger: Ledger, run_cell: RunCell, report: Report, show: Callable[..., object]
) -> None:
    """Run every cell that is ready, report, and look again: each stage makes the next one's cells known."""

    def done(cell: Cell, records: list[Record], device: str) -> None:
        ledger.write(cell, records, device)
        show(cell, records)

    while cells := ready(study, ledger.records):
        run_cells(cells, study, run_cell=run_cell, done=done, alone=cells[0].stage == "cost")
        _report_unless_it_fails(report, study, ledger)


def _finish(study: Study, records: list[Record], report: Report, began: float) -> StudyResult:
    """Write the report and sum up."""
    folder, cells = Path(study.output), expected(study, records)
    results = report(study, records, folder, cells)
    last = {record["key"]: record for record in records}
    ran = [last[cell.key] for cell in cells if cell.key in last]
    failures = {
        record["key"]: f"{record['status']}: {record['error']}" for record in ran if record["status"] != "ok"
    }
    left = [cell for cell in cells if cell.key not in last]
    is_over = not ready(study, records)
    return StudyResult(
        name=str(study.name),
        output=study.output,
        rows=str(records_path(study)),
        table=str(folder / "table.md"),
        cells=len(cells),
        done=len(ran) - len(failures),
        failed=failures,
        missing=[cell.key for cell in left if is_over],
        at_edge=edges(study, records),
        waiting=dict(Counter[str](cell.stage for cell in left if not is_over)),
        seconds=time.perf_counter() - began,
        results=results,
    )


def _report_unless_it_fails(report: Report, study: Study, ledger: Ledger) -> None:
    """Write the report of an unfinished study; an error in a picture must not cost the runs that are left."""
    try:
        report(study, ledger.records, ledger.folder, expected(study, ledger.records))
    except Exception as error:
        warnings.warn(
            f"the report could not be written yet ({type(error).__name__}: {error}); the study goes on",
            stacklevel=2,
        )


def _run_cell() -> RunCell:
    from shadowpeft.compare.run_cell import run_cell

    return run_cell


def _report() -> Report:
    from shadowpeft.compare import plots
    from shadowpeft.compare.report import report
    from shadowpeft.compare.summary import summary

    def write(study: Study, records: list[Record], folder: Path, cells: list[Cell]) -> dict[str, Any]:
        # The plots come first: the report links those that are there.
        plots.draw(study, records, folder)
        report(study, records, folder, cells)
        return summary(study, records, cells)

    return write


@contextmanager
def _stopping_as_ctrl_c() -> Iterator[None]:
    """Let a request to end (SIGTERM) stop the study as Ctrl-C does, so that none of its processes is left."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # Python lets only the main thread handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(study: Study, ledger: Ledger) -> Iterator[Callable[[Cell, list[Record]], object]]:
    """Show each finished cell on standard error."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar at a time
    finished, total = _count(study, ledger.records)
    with progress_bar(f"study {study.name}", total, completed=finished) as bar:

        def show(cell: Cell, records: list[Record]) -> None:
            finished, total = _count(study, ledger.records)
            bar.update(finished, total)
            bar.say(f"[{finished}/{total}] {cell.key}: {_outcome(records)}")

        yield show


def _count(study: Study, records: Sequence[Record]) -> tuple[int, int]:
    """Count the cells that have run and those of the whole study; failed trials leave fewer finalists."""
    keys, done = [cell.key for cell in expected(study, records)], {record["key"] for record in records}
    return sum(key in done for key in keys), len(keys)


def _outcome(records: Sequence[Record]) -> str:
    first = records[0]
    if first["status"] != "ok":
        return f"{first['status']} ({first['error']})"
    values = [
        f"{record['metric']} {record['value']:.4g} {record['mode']}"
        for record in records
        if record["task"] == record["trained_on"] and record["value"] is not None
    ]
    return ", ".join(values) or "no value"
