"""The results of a study for programs, as plain values, and for the terminal, as a short table."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.method_result import MethodResult
from shadowpeft.compare.records import Record
from shadowpeft.compare.results import Average, Results
from shadowpeft.compare.study import Study
from shadowpeft.reporting.stats import Difference, Estimate
from shadowpeft.reporting.tables import UNKNOWN, interval, plural

_HEADS = ["method", "mode", "cells", "score %", "to LoRA", "95 % (items and seeds)", "forgetting"]


def summary(
    study: Study, records: Iterable[Record], expected: Sequence[Cell] | None = None
) -> dict[str, Any]:
    """Return the results as plain values for JSON: shares between 0 and 1, `None` for what is unknown."""
    results = Results(study, records, expected)
    return {
        "study": study.name,
        "rank": results.rank,
        "averages": [_average(average) for average in results.averages()],
        "cells": [_cell(results, result) for result in results.final],
        "missing": [{"cell": cell, "why": why} for cell, why in results.missing()],
    }


def terminal(summary: Mapping[str, Any]) -> str:
    """Lay out the averages of a `summary` as plain text."""
    rows = [_HEADS, *map(_terminal_row, summary["averages"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    missing = len(summary["missing"])
    if missing:
        text.append(f"{missing} {plural(missing, 'cell')} without a result")
    return "\n".join(text)


def _terminal_row(average: Mapping[str, Any]) -> list[str]:
    value, difference, forgetting = (average[name] for name in ("value", "difference", "forgetting"))
    score = gain = forgotten = UNKNOWN
    if value:
        score = f"{100 * value['mean']:.1f}"
    if difference:
        gain = f"{100 * difference['value']:+.2f}"
    if forgetting:
        forgotten = f"{forgetting['mean']:+.3f}"
    spread = interval((difference or {}).get("items_and_seeds"))
    return [average["method"], average["mode"], str(average["cells"]), score, gain, spread, forgotten]


def _average(average: Average) -> dict[str, Any]:
    return {
        "method": average.method,
        "mode": average.mode,
        "cells": len(average.results),
        "value": _plain(average.value),
        "lora": _plain(average.reference),
        "difference": _plain(average.difference),
        "trainable_ratio": average.size_ratio,
        "forgetting": _plain(average.forgetting),
        "forgetting_difference": _plain(average.forgetting_difference),
    }


def _cell(results: Results, result: MethodResult) -> dict[str, Any]:
    return {
        "model": result.model,
        "trained_on": result.trained_on,
        "task": result.task,
        "method": result.method,
        "mode": result.mode,
        "rank": result.rank,
        "metric": result.records[0]["metric"],
        "seeds": [record["seed"] for record in result.records],
        "items": result.items,
        "value": _plain(result.estimate("value")),
        "difference": _plain(results.difference(result)),
        "trainable": result.mean("trainable"),
        "trainable_ratio": results.size_ratio(result),
        "forgetting": _plain(result.estimate("forgetting")),
        "ece": _plain(result.estimate("calibration.ece")),
        "cost": results.cost(result),
    }


def _plain(value: Estimate | Difference | None) -> dict[str, Any] | None:
    return None if value is None else dict(vars(value))
