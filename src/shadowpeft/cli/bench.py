"""`shadowpeft bench train`, `shadowpeft bench forward` and `shadowpeft bench table`."""

import json as jsonlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shadowpeft.bench.settings import Bench, TrainBench
from shadowpeft.cli import FAILURE, _runs
from shadowpeft.cli._libraries import require
from shadowpeft.errors import UserError

NEEDS = ("peft", "matplotlib", "rich", "accelerate", "datasets")


def train(settings: TrainBench, json: bool = False) -> int:
    """Time training steps of a frozen base, LoRA, DoRA and the shadows side by side, and read the memory
    they take.

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
    """Print the table of a run again, and write its files beside the rows again.

    Args:
        rows: the file of rows.
        run: which run; by default the last one in the file.
        json: print rows and ratios as JSON in place of the table.
    """
    require("a measurement", NEEDS, extra="compare")
    from shadowpeft.bench.measurements import last_run, read

    if not Path(rows).is_file():
        raise UserError(f"there is no file of rows at {rows}; shadowpeft bench train or forward writes one")
    _report(last_run(read(Path(rows)), run), Path(rows), json)


def _bench(settings: Bench, json: bool) -> int:
    require("a measurement", NEEDS, extra="compare")
    from shadowpeft.bench.run import bench
    from shadowpeft.reporting.devices import pick_device

    file = bench(settings, pick_device(settings.device), _runs.command())
    rows = list(file.measurements.values())
    _report(rows, file.path, json)
    return 0 if any(row["ms"] is not None for row in rows) else FAILURE


def _report(rows: list[dict[str, Any]], path: Path, json: bool) -> None:
    from shadowpeft.bench import plot, report
    from shadowpeft.storage import atomic

    text = report.markdown(rows)
    atomic.write_together(path.absolute().parent, {path.with_suffix(".md").name: atomic.text(text + "\n")})
    plot.draw(rows, path.with_suffix(".png"))
    if json:
        text = jsonlib.dumps({"rows": rows, "ratios": report.ratios(rows)}, indent=2)
    print(text)
    print(
        f"rows: {path}; table: {path.with_suffix('.md')}; picture: {path.with_suffix('.png')}",
        file=sys.stderr,
    )


# The functions of `bench` by the name of their part, as `shadowpeft.cli.PARTS` lists them.
PARTS: dict[str, Callable[..., int | None]] = {"train": train, "forward": forward, "table": table}
