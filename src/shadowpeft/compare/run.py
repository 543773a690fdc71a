"""Running a study from its settings to its table; stopped at any point, the same command goes on where it stopped."""

import signal
import sys
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
from shadowpeft.compare.ledger import STUDY, Ledger, Row, check_folder, read
from shadowpeft.compare.schedule import expected, ready
from shadowpeft.compare.study import Study
from shadowpeft.compare.workers import RunCell, run_cells
from shadowpeft.errors import ConfigError

# Writes table and plots to a folder and returns the results as plain values.
Report = Callable[[Study, list[Row], Path, list[Cell]], dict[str, Any]]


@dataclass(frozen=True)
class StudyResult:
    """What a study came to.

    Attributes:
        name: its name.
        output: its folder.
        rows: the file of its rows.
        table: the Markdown table.
        cells: how many cells it has.
        done: how many of them were measured.
        failed: the cells that ended in an error, with that error.
        missing: the cells that could not be run, since no trial of their method came to a value.
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
    waiting: dict[str, int]
    seconds: float
    results: dict[str, Any]


def compare(
    study: Study, retry: bool = False, run_cell: RunCell | None = None, report: Report | None = None
) -> StudyResult:
    """Run what is left of a study and write its table and plots.

    Everything that can be checked without training or the test split is checked first. A cell that fails is recorded and the study goes on.

    Args:
        study: the study.
        retry: run the cells again that failed in an earlier session, except where that could read the test split twice.
        run_cell: runs one cell, in place of the package's own.
        report: writes table and plots, in place of the package's own.

    Raises:
        UserError: settings, model, data or folder cannot be used; its type and message say which.
        KeyboardInterrupt: the study was stopped; what was measured is recorded, and the report tells of it.
    """
    began = time.perf_counter()
    ledger = Ledger(study)
    is_new = ledger.is_new
    if is_new:  # a study that is refused leaves nothing behind
        _check(study)
    with ledger:
        if retry:
            ledger.forget_failures()
        if not is_new and ready(study, ledger.rows):
            _check(study)
        run_cell, report = run_cell or _run_cell(), report or _report()
        with _stopping_as_ctrl_c(), _progress(study, ledger) as show:
            try:
                _run_stages(study, ledger, run_cell, report, show)
            except KeyboardInterrupt:
                _report_unless_it_fails(report, study, ledger)
                raise
        return _finish(study, ledger.rows, report, began)


def _check(study: Study) -> None:
    check_models(study)
    check_numbers(study, check_data(study))


def report_again(study: Study, report: Report | None = None) -> StudyResult:
    """Write table and plots anew from the rows of a study, complete or not.

    Raises:
        ConfigError: there is no such study.
    """
    began = time.perf_counter()
    if not (Path(study.output) / STUDY).is_file():
        raise ConfigError(
            f"there is no study in {study.output}; give the folder of one as output, or leave out report_only to run it"
        )
    check_folder(study)
    rows = read(Path(study.output) / f"compare-{study.name}.jsonl")
    return _finish(study, rows, report or _report(), began)


def _run_stages(
    study: Study, ledger: Ledger, run_cell: RunCell, report: Report, show: Callable[..., object]
) -> None:
    def done(cell: Cell, rows: list[Row], device: str) -> None:
        ledger.write(cell, rows, device)
        show(cell, rows)

    while cells := ready(study, ledger.rows):
        run_cells(cells, study, run_cell, done, alone=cells[0].stage == "cost")
        _report_unless_it_fails(report, study, ledger)


def _finish(study: Study, rows: list[Row], report: Report, began: float) -> StudyResult:
    folder, cells = Path(study.output), expected(study, rows)
    results = report(study, rows, folder, cells)
    status = {row["key"]: row for row in rows}
    keys = [cell.key for cell in cells]
    failures = {
        key: f"{status[key]['status']}: {status[key]['error']}"
        for key in keys
        if key in status and status[key]["status"] != "ok"
    }
    without = [cell for cell in cells if cell.key not in status]
    is_over = not ready(study, rows)
    missing = [cell.key for cell in without] if is_over else []
    waiting = {} if is_over else dict(Counter[str](cell.stage for cell in without))
    path, table = folder / f"compare-{study.name}.jsonl", folder / "table.md"
    done, seconds = len(keys) - len(without) - len(failures), time.perf_counter() - began
    return StudyResult(
        str(study.name),
        study.output,
        str(path),
        str(table),
        len(keys),
        done,
        failures,
        missing,
        waiting,
        seconds,
        results,
    )


def _report_unless_it_fails(report: Report, study: Study, ledger: Ledger) -> None:
    """Write the report of an unfinished study: a fault in a picture shall not cost the runs that are left."""
    try:
        report(study, ledger.rows, ledger.folder, expected(study, ledger.rows))
    except Exception as error:
        warnings.warn(
            f"the report could not be written yet ({type(error).__name__}: {error}); the study goes on",
            stacklevel=2,
        )


def _run_cell() -> RunCell:
    from shadowpeft.compare.run_cell import run_cell

    return run_cell


def _report() -> Report:
    from shadowpeft.compare import plots, report

    def write(study: Study, rows: list[Row], folder: Path, cells: list[Cell]) -> dict[str, Any]:
        plots.draw(study, rows, folder)
        report.report(study, rows, folder, cells)
        return report.summary(study, rows, cells)

    return write


# Progress and interruption


@contextmanager
def _stopping_as_ctrl_c() -> Iterator[None]:
    """Let a request to end (SIGTERM) stop the study as Ctrl-C does, so that no process of it is left behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone hears of signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _progress(study: Study, ledger: Ledger) -> Iterator[Callable[[Cell, list[Row]], object]]:
    """Show each finished cell on standard error, under a bar where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar at a time
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        finished, total = _count(study, ledger.rows)
        task = bar.add_task(f"study {study.name}", total=total, completed=finished)

        def show(cell: Cell, rows: list[Row]) -> None:
            finished, total = _count(study, ledger.rows)
            bar.update(task, total=total, completed=finished)
            print(f"[{finished}/{total}] {cell.key}: {_outcome(rows)}", file=sys.stderr, flush=True)

        yield show


def _count(study: Study, rows: Sequence[Row]) -> tuple[int, int]:
    """Count the cells that have run and those of the whole study, which are fewer where trials that failed leave fewer finalists."""
    keys, done = [cell.key for cell in expected(study, rows)], {row["key"] for row in rows}
    return sum(key in done for key in keys), len(keys)


def _outcome(rows: Sequence[Row]) -> str:
    first: dict[str, Any] = rows[0]
    if first["status"] != "ok":
        return f"{first['status']} ({first['error']})"
    own = [row for row in rows if row["task"] == row["trained_on"]]
    value = ", ".join(
        f"{row['metric']} {row['value']:.4g} {row['mode']}" for row in own if row["value"] is not None
    )
    return value or "no value"
