"""`shadowpeft demo`."""

import importlib.util
import os
from pathlib import Path

from shadowpeft.errors import UserError

NEEDS = ("peft", "matplotlib", "rich", "accelerate")


def run(report: str = "report.html", json: bool = False, seed: int = 0) -> int:
    """Adapt the embedded model to intents by LoRA and by a shadow, offline and in minutes, and compare them.

    Args:
        report: where to write the report, one HTML file.
        json: print the results as JSON instead of a table.
        seed: seed of the random weights and of the order of the rows.
    """
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"the demo needs {', '.join(missing)}; pip install 'shadowpeft[demo]'")
    path = Path(report)
    if not path.parent.is_dir():
        raise UserError(f"--report must be in a folder that exists, {path.parent} does not")
    if path.is_dir():
        raise UserError(
            f"--report must be a file, {path} is a folder; give a name in it, such as {path / 'report.html'}"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--report must be a file that can be written, {path} cannot; choose another")
    from shadowpeft.demo.screen import show

    show(path, seed, json)
    return 0
