"""`shadowpeft bench train`, `bench forward`, `bench decode` and `bench table`."""

import json as jsonlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shadowpeft.bench.decode.settings import DecodeBench
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


def decode(settings: DecodeBench, json: bool = False) -> int:
    """Time how fast a base, LoRA, DoRA and the shadows write, side by side: as a user calls generate, as a
    step in a CUDA graph, and compiled; and what drafts of the shadow save.

    Args:
        settings: the measurement.
        json: print rows and ratios as JSON in place of the table.
    """
    require("a measurement", NEEDS, extra="compare")
    from shadowpeft.bench.decode.run import decode
    from shadowpeft.reporting.devices import pick_device

    file, rows = decode(
        settings, pick_device(settings.device), _runs.command(), say=lambda line: print(line, file=sys.stderr)
    )
    _report(rows, file.path, json)
    return 0 if any(row["ms_per_token"] is not None for row in rows) else FAILURE


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
        raise UserError(
            f"there is no file of rows at {rows}; shadowpeft bench train, forward or decode writes one"
        )
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
    from shadowpeft.bench.decode import report as decode_report
    from shadowpeft.storage import atomic

    decodes = any(row.get("kind") == "decode" for row in rows)
    layout: Any = decode_report if decodes else report
    text = layout.markdown(rows)
    made = f"rows: {path}; table: {path.with_suffix('.md')}"
    atomic.write_together(path.absolute().parent, {path.with_suffix(".md").name: atomic.text(text + "\n")})
    if not decodes:
        plot.draw(rows, path.with_suffix(".png"))
        made += f"; picture: {path.with_suffix('.png')}"
    if json:
        text = jsonlib.dumps({"rows": rows, "ratios": layout.ratios(rows)}, indent=2)
    print(text)
    print(made, file=sys.stderr)


# The functions of `bench` by the name of their part, as `shadowpeft.cli.PARTS` lists them.
PARTS: dict[str, Callable[..., int | None]] = {
    "train": train, "forward": forward, "decode": decode, "table": table,
}  # fmt: skip
