"""What the demo shows while it works and when it is done."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers.utils import logging as transformers_logging

from shadowpeft.demo.report import HEADINGS, cells, write_report
from shadowpeft.demo.run import DemoResult, run
from shadowpeft.demo.settings import Settings
from shadowpeft.storage.jsonable import finite

FIRST_MINUTE = 60.0


class Screen:
    """One progress bar after another on standard error; standard output is for the results.

    After the first minute it says once how long the whole will take, on a terminal or not.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._began, self._finished, self._said = time.monotonic(), 0.0, False

    @contextmanager
    def task(self, text: str, total: int, share: float) -> Iterator[Callable[[int, int], None]]:
        """Show a bar while the context lasts; call its value with (done, total).

        Args:
            text: what is done.
            total: how many parts it has.
            share: the part of the demo's whole time that it takes.
        """
        columns = (
            TextColumn("{task.description:<58}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(text, total=total)

            def moved(done: int, total: int) -> None:
                progress.update(bar, completed=done, total=total)
                self._forecast(self._finished + share * done / total)

            yield moved
        self._finished += share

    def _forecast(self, done: float) -> None:
        passed = time.monotonic() - self._began
        if self._said or passed < FIRST_MINUTE or done <= 0:
            return
        self._said = True
        self.console.print(f"this will take about {passed / done / 60:.1f} minutes in all")


def show(report: Path, seed: int, as_json: bool) -> None:
    """Run the demo, print the table (or JSON) and write the report."""
    # transformers would show bars of its own between those of the demo.
    transformers_logging.disable_progress_bar()
    screen = Screen()
    result = run(Settings(seed=seed), screen)
    if as_json:
        facts = {**dataclasses.asdict(result), "report": str(report)}
        print(json.dumps(finite(facts), indent=2, allow_nan=False))
    else:
        Console().print(table(result))
    # After the table, which would be lost where the disk is full.
    write_report(result, report)
    screen.console.print(f"{result.seconds:.0f} s in all; the curves and bars are in {report}")


def table(result: DemoResult) -> Table:
    """Lay out the results."""
    title = f"{result.labels} answers, {result.test_rows} held-out requests, scored by the most likely answer"
    made = Table(title=title)
    # At 80 columns a long name takes a second line, and no number loses its end.
    made.add_column(HEADINGS[0], width=17)
    made.add_column(HEADINGS[1], justify="right", no_wrap=True)
    made.add_column(HEADINGS[2], justify="right", width=10)
    made.add_column(HEADINGS[3], justify="right", width=8)
    made.add_column(HEADINGS[4], justify="right", no_wrap=True)
    for method in result.methods:
        made.add_row(*cells(method))
    return made
