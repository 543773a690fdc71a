"""`shadowpeft bench train`, `shadowpeft bench forward` and `shadowpeft bench table`."""

import importlib.util
import json as jsonlib
import shlex
import sys
from pathlib import Path
from typing import Any

from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.cli import FAILURE
from shadowpeft.errors import UserError

NEEDS = ("peft", "matplotlib", "rich", "accelerate", "datasets")


def train(settings: TrainBench, json: bool = False) -> int:
    """Time training steps of a frozen base, LoRA, DoRA and the shadows side by side, and read the memory they take.

    Args:
        settings: the measurement.
        json: print rows and ratios as JSON in place of the table.
    """
    return _bench(settings, json)


def forward(settings: Bench, json: bool = False) -> int:
    """Time the reading of a prompt by a frozen base, LoRA, DoRA and the shadows side by side.

    Args:
        settings: the measurement.
        json: print rows and ratios as JSON in place of the table.
    """
    return _bench(settings, json)


def table(rows: str, run: str | None = None, json: bool = False) -> None:
    """Print the table of a run again, and make its files beside the rows anew.

    Args:
        rows: the file of rows.
        run: which run; by default the last one in the file.
        json: print rows and ratios as JSON in place of the table.
    """
    _require()
    from shadowpeft.bench.measurements import last_run, read

    if not Path(rows).is_file():
        raise UserError(f"there is no file of rows at {rows}; shadowpeft bench train or forward writes one")
    _report(last_run(read(Path(rows)), run), Path(rows), json)


def _bench(settings: Bench, json: bool) -> int:
    _require()
    from shadowpeft.bench.run import bench
    from shadowpeft.reporting.devices import pick_device

    file = bench(settings, pick_device(settings.device), shlex.join(["shadowpeft", *sys.argv[1:]]))
    rows = list(file.measurements.values())
    _report(rows, file.path, json)
    return 0 if any(row["ms"] is not None for row in rows) else FAILURE


def _require() -> None:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a measurement needs {', '.join(missing)}; pip install 'shadowpeft[compare]'")


def _report(rows: list[dict[str, Any]], path: Path, json: bool) -> None:
    from shadowpeft.bench import plot, report
    from shadowpeft.storage import atomic

    text = report.markdown(rows)
    atomic.write_together(path.absolute().parent, {path.with_suffix(".md").name: atomic.text(text + "\n")})
    plot.draw(rows, path.with_suffix(".png"))
    print(jsonlib.dumps({"rows": rows, "ratios": report.ratios(rows)}, indent=2) if json else text)
    print(
        f"rows: {path}; table: {path.with_suffix('.md')}; picture: {path.with_suffix('.png')}",
        file=sys.stderr,
    )
