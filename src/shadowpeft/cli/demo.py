"""`shadowpeft demo`."""

import os
from pathlib import Path

from shadowpeft.cli._libraries import require
from shadowpeft.errors import UserError

NEEDS = ("peft", "matplotlib", "rich", "accelerate")


def run(report: str = "report.html", json: bool = False, seed: int = 0) -> int:
    """Adapt the embedded model to intents by LoRA and by a shadow, offline and in minutes, and compare them.

    Args:
        report: where to write the report, one HTML file.
        json: print the results as JSON instead of a table.
        seed: seed of the random weights and of the order of the rows.
    """
    require("the demo", NEEDS, extra="demo")
    path = Path(report)
    _refuse_unwritable(path)
    from shadowpeft.demo.screen import show

    show(path, seed, json)
    return 0


def _refuse_unwritable(path: Path) -> None:
    """Refuse a report that could not be written, before minutes of work."""
    if not path.parent.is_dir():
        raise UserError(f"--report must be in a folder that exists, {path.parent} does not")
    if path.is_dir():
        raise UserError(
            f"--report must be a file, {path} is a folder; give a name in it, such as {path / 'report.html'}"
        )
    written = path if path.exists() else path.parent
    if not os.access(written, os.W_OK):
        raise UserError(f"--report must be a file that can be written, {path} cannot; choose another")
