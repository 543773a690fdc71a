"""What the demo shows while it works and when it is done."""

import dataclasses
import json
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


class Screen:
    """One progress bar after another, on standard error, which leaves standard output to the results."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def task(self, text: str, total: int) -> Iterator[Callable[[int, int], object]]:
        """Show a bar while the context lasts; call its value with (done, total)."""
        columns = (
            TextColumn("{task.description:<58}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            bar = progress.add_task(text, total=total)
            yield lambda done, total: progress.update(bar, completed=done, total=total)


def show(report: Path, seed: int, as_json: bool) -> None:
    """Run the demo, print the table (or JSON) and write the report."""
    transformers_logging.disable_progress_bar()  # one bar at a time
    screen = Screen()
    result = run(Settings(seed=seed), screen)
    if as_json:
        print(
            json.dumps(
                finite({**dataclasses.asdict(result), "report": str(report)}), indent=2, allow_nan=False
            )
        )
    else:
        Console().print(table(result))
    write_report(result, report)  # after the table, which shall not be lost where the disk is full
    screen.console.print(f"{result.seconds:.0f} s in all; the curves and bars are in {report}")


def table(result: DemoResult) -> Table:
    """Lay out the results."""
    made = Table(
        title=f"{result.labels} answers, {result.test_rows} held-out requests, scored by the most likely answer"
    )
    widths = (
        17,
        None,
        10,
        8,
        None,
    )  # so that at 80 columns a long name takes a second line and no number loses its end
    for number, (heading, width) in enumerate(zip(HEADINGS, widths, strict=True)):
        made.add_column(
            heading, justify="left" if number == 0 else "right", no_wrap=number in (1, 4), width=width
        )
    for method in result.methods:
        made.add_row(*cells(method))
    return made
