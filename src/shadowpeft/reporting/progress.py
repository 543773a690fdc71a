"""The progress of a long run: a line on standard error for each finished part, and a bar on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """A bar that is on the screen.

    Args:
        bar: the display of rich.
        task: the one line of that display.
    """

    def __init__(self, bar: "Progress", task: "TaskID") -> None:
        self._bar, self._task = bar, task

    def advance(self) -> None:
        """Count one more finished part."""
        self._bar.advance(self._task)

    def update(self, completed: int, total: int) -> None:
        """Set how many parts are finished, and of how many."""
        self._bar.update(self._task, completed=completed, total=total)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress_bar(title: str, total: int, completed: int = 0) -> Iterator[ProgressBar]:
    """Show a bar on standard error while the context lasts; only its lines if that is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield ProgressBar(bar, bar.add_task(title, total=total, completed=completed))
