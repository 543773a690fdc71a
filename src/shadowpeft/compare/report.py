"""The report of a study: table.md for people, a plain dictionary for programs, a short table for the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.results import Line, Results, Row, read, short
from shadowpeft.compare.search_section import search_section
from shadowpeft.compare.study import Study
from shadowpeft.reporting.stats import Difference, Estimate
from shadowpeft.reporting.tables import interval, nats, number, one_line, percent, points, ratio, table, whole
from shadowpeft.storage import atomic

NAME = "table.md"
_PLOTS = {
    "differences.png": "differences to LoRA",
    "parameters.png": "score over trainable parameters",
    "training_time.png": "score over training time",
    "calibration.png": "calibration of the detached models",
}
_READING = """Scores are percentages; ± is a 95 % interval over training seeds (Student's t). Differences are to LoRA on the same
test items and seeds, in points of items answered correctly. Their first interval is a paired bootstrap over test items: the models at hand,
other items. The second counts other items and other seeds, and is the one to judge a method by; a single seed gives none. Forgetting is the
rise of the loss on held-out text against the untuned base, in nats per token. Trainable parameters are the adapter's, without
classification head."""


def report(
    study: Study, rows: Iterable[Row], folder: str | Path, expected: Sequence[Cell] | None = None
) -> Path:
    """Write table.md of a study, finished or not, and link the plots that lie in the folder.

    Args:
        study: the study.
        rows: its rows so far.
        folder: where to write.
        expected: the cells of the whole study; those without a row are listed as missing.

    Returns:
        The file.

    Raises:
        DataError: rows that should be comparable are of different items.
        CheckpointError: the file cannot be written.
    """
    results = Results(study, rows, expected)
    parts = [_head(results), _summary(results), _missing(results)]
    parts += [_section(results, model, task) for model in results.models for task in results.tasks]
    parts += [_scaling(results), search_section(results)]
    plots = [f"![{title}]({name})" for name, title in _PLOTS.items() if (Path(folder) / name).exists()]
    parts.append("\n\n".join(["## Plots", *plots]) if plots else "")
    atomic.write_together(
        Path(folder), {NAME: atomic.text("\n\n".join(part for part in parts if part) + "\n")}
    )
    return Path(folder) / NAME


def summary(study: Study, rows: Iterable[Row], expected: Sequence[Cell] | None = None) -> dict[str, Any]:
    """Give the results as plain values, fit for JSON: shares between 0 and 1, `None` for what is unknown."""
    results = Results(study, rows, expected)
    return {
        "study": study.name,
        "rank": results.rank,
        "averages": [
            {
                "method": average.method,
                "mode": average.mode,
                "cells": len(average.lines),
                "value": _plain(average.value),
                "lora": _plain(average.reference),
                "difference": _plain(average.difference),
                "trainable_ratio": average.size_ratio,
                "forgetting": _plain(average.forgetting),
                "forgetting_difference": _plain(average.forgetting_difference),
            }
            for average in results.averages()
        ],
        "cells": [_plain_line(results, line) for line in results.lines],
        "missing": [{"cell": cell, "why": why} for cell, why in results.missing()],
    }


def terminal(summary: Mapping[str, Any]) -> str:
    """Lay out the averages of a `summary` as plain text."""
    heads = ["method", "mode", "cells", "score %", "to LoRA", "95 % (items and seeds)", "forgetting"]
    lines = [heads]
    for entry in summary["averages"]:
        value, forgetting = entry["value"], entry["forgetting"]
        difference = entry["difference"] or {}
        lines.append(
            [
                entry["method"],
                entry["mode"],
                str(entry["cells"]),
                f"{100 * value['mean']:.1f}" if value else "-",
                f"{100 * difference['value']:+.2f}" if difference else "-",
                interval(difference.get("items_and_seeds")),
                f"{forgetting['mean']:+.3f}" if forgetting else "-",
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    missing = len(summary["missing"])
    if missing:
        text.append(f"{missing} cell{'s' * (missing > 1)} without a result")
    return "\n".join(text)


def _plain(value: Estimate | Difference | None) -> dict[str, Any] | None:
    return None if value is None else dict(vars(value))


def _plain_line(results: Results, line: Line) -> dict[str, Any]:
    return {
        "model": line.model,
        "trained_on": line.trained_on,
        "task": line.task,
        "method": line.method,
        "mode": line.mode,
        "rank": line.rank,
        "metric": line.rows[0]["metric"],
        "seeds": [row["seed"] for row in line.rows],
        "items": line.items,
        "value": _plain(line.estimate("value")),
        "difference": _plain(results.difference(line)),
        "trainable": line.mean("trainable"),
        "trainable_ratio": results.size_ratio(line),
        "forgetting": _plain(line.estimate("forgetting")),
        "ece": _plain(line.estimate("calibration.ece")),
        "cost": results.cost(line),
    }


def _head(results: Results) -> str:
    study = results.study
    name = short(results.models)
    facts = [
        f"Models: {', '.join(map(name, results.models))}. Tasks: {', '.join(results.tasks)}.",
        f"Every run: {study.steps:,} steps of {study.batch_size} rows; final runs from {study.seeds} seed{'s' * (study.seeds > 1)}; "
        f"{study.trials} setting{'s' * (study.trials > 1)} of each method tried on the validation split{_second_seed(study)}.",
    ]
    if left_out := _left_out(study):
        facts.append(left_out)
    made = [
        f"{what} {', '.join(found)}"
        for what in ("device", "commit")
        if (found := _distinct(results.rows, what))
    ]
    versions = sorted(
        {f"{key} {value}" for row in results.rows for key, value in (row.get("versions") or {}).items()}
    )
    if made or versions:
        facts.append(f"Made with {'; '.join([*made, ', '.join(versions)]).strip('; ')}.")
    if not any(line.method == "lora" for line in results.lines):
        facts.append("**There are no finished runs of LoRA, so no differences can be given.**")
    return "\n\n".join([f"# Study {study.name}", *facts, _READING])


def _second_seed(study: Study) -> str:
    return (
        f", the best {study.finalists} again from a second seed and chosen among by the mean of both"
        if study.finalists > 1
        else ""
    )


def _left_out(study: Study) -> str:
    """Say which test rows are left out, of which tasks where they differ in it; nothing where none are."""
    tasks: dict[tuple[int, ...], list[str]] = {}
    for task in study.tested:
        tasks.setdefault(study.skips_of(task), []).append(task)
    if len(tasks) > 1:
        return " ".join(
            _drawn(skips, f"The test rows of {', '.join(names)}") for skips, names in tasks.items()
        )
    return "".join(_drawn(skips, "The test rows") for skips in tasks if skips)


def _drawn(skips: Sequence[int], rows: str) -> str:
    if not skips:
        return f"{rows} are drawn from all there are."
    counts = ", then ".join(f"{skip:,}" for skip in skips)
    if len(skips) == 1:
        return f"{rows} are others than those that a study of {counts} test rows reads."
    return f"{rows} are others than those that studies of {counts} test rows read, each from what the ones before left."


def _distinct(rows: Sequence[Row], field: str) -> list[str]:
    return sorted({str(row[field]) for row in rows if row.get(field)})


def _summary(results: Results) -> str:
    averages = results.averages()
    if not averages:
        return "## Averages\n\nThere are no final results yet."
    planned = len(results.models) * len(results.tasks)
    averaged = table(
        [
            "method",
            "mode",
            "cells",
            "score",
            "LoRA there",
            "to LoRA",
            "95 % items",
            "95 % items and seeds",
            "parameters / LoRA's",
            "forgetting",
            "to LoRA's",
        ],
        [
            [
                average.method,
                average.mode,
                f"{len(average.lines)} of {planned}",
                percent(average.value),
                percent(average.reference),
                *points(average.difference),
                ratio(average.size_ratio),
                nats(average.forgetting),
                nats(average.forgetting_difference),
            ]
            for average in averages
        ],
    )
    note = (
        f"At rank {results.rank}; every cell (a model and a task) counts the same. Each line is over the cells and seeds that the method "
        'and LoRA both have; "LoRA there" is LoRA\'s score on those.'
    )
    if lost := results.lost():
        note += f"\n\n**Final runs that failed and are in no average: {len(lost)}. One that diverged counts against its method: see below.**"
    return f"## Averages over tasks and models\n\n{note}\n\n{averaged}"


def _missing(results: Results) -> str:
    missing = results.missing()
    if not missing:
        return "## Missing cells\n\nNone."
    lines = [f"- `{cell}`: {one_line(why)}" for cell, why in missing]
    return "\n".join([f"## Missing cells\n\n{len(missing)} without a result:\n", *lines])


def _section(results: Results, model: str, task: str) -> str:
    lines = results.select(model, task, results.rank)
    title = f"## {short(results.models)(model)}: {task}"
    if not lines:
        return f"{title}\n\nNo final results yet."
    items = " and ".join(f"{count:,}" for count in sorted({line.items for line in lines}))
    seeds = max(len(line.rows) for line in lines)
    note = f"{lines[0].rows[0]['metric']} on {items} {lines[0].rows[0]['split']} items, {seeds} seed{'s' * (seeds > 1)}, rank {results.rank}."
    if any(
        abs(value - row["correct"].count("1") / len(row["correct"])) > 1e-6
        for line in lines
        for row, value in _marked(line)
    ):
        note += " The score is not the share of items answered correctly, which the differences are of."
    parts = [
        title,
        note,
        _quality(results, lines),
        _partners(results, model, task),
        _costs(results, lines),
        _details(lines),
    ]
    return "\n\n".join(part for part in parts if part)


def _marked(line: Line) -> list[tuple[Row, float]]:
    return [
        (row, value) for row in line.rows if row.get("correct") and (value := read(row, "value")) is not None
    ]


def _quality(results: Results, lines: Sequence[Line]) -> str:
    return table(
        [
            "method",
            "mode",
            "seeds",
            "score",
            "to LoRA",
            "95 % items",
            "95 % items and seeds",
            "trainable",
            "/ LoRA's",
            "forgetting",
            "ECE",
        ],
        [
            [
                line.method,
                line.mode,
                str(len(line.rows)),
                percent(line.estimate("value")),
                *points(results.difference(line)),
                whole(line.mean("trainable")),
                ratio(results.size_ratio(line)),
                nats(line.estimate("forgetting")),
                percent(line.estimate("calibration.ece")),
            ]
            for line in lines
        ],
    )


def _partners(results: Results, model: str, task: str) -> str:
    rows = [
        [
            partner,
            line.method,
            line.mode,
            line.rows[0]["metric"],
            whole(line.items),
            percent(line.estimate("value")),
            *points(results.difference(line)),
        ]
        for partner in results.partners(model, task)
        for line in results.select(model, task, results.rank, partner)
    ]
    heads = [
        "tested on",
        "method",
        "mode",
        "metric",
        "items",
        "score",
        "to LoRA",
        "95 % items",
        "95 % items and seeds",
    ]
    return f"Out of distribution:\n\n{table(heads, rows)}" if rows else ""


def _costs(results: Results, lines: Sequence[Line]) -> str:
    costs = [(line, results.cost(line)) for line in lines]
    timed = table(
        ["method", "mode", "training s", "tokens/s", "peak GB", "adapter MB", "ms per answer", "timed"],
        [
            [
                line.method,
                line.mode,
                number(cost["train_seconds"], 1),
                whole(cost["train_tokens_per_second"]),
                number(cost["peak_gb"], 2),
                number(cost["adapter_bytes"], 2),
                number(cost["ms_per_answer"], 1),
                "alone" if cost["alone"] else "in the study",
            ]
            for line, cost in costs
        ],
    )
    note = "Cost:"
    if any(cost["alone"] for _, cost in costs):
        note = "Cost; where timed alone, no other run was on the device, and training seconds are its time per step times the steps of a run:"
    elif results.study.workers > 1:
        note = f"Cost, not yet timed alone: measured while up to {results.study.workers} runs shared a device, so the times are too long:"
    return f"{note}\n\n{timed}"


def _details(lines: Sequence[Line]) -> str:
    primary = lines[0].rows[0]["metric"]
    names = dict.fromkeys(name for line in lines for row in line.rows for name in row.get("metrics") or {})
    others = [name for name in names if name != primary]
    if not others:
        return ""
    cells = [[name, *(_metric(name, line.estimate(f"metrics.{name}")) for line in lines)] for name in others]
    return f"Further metrics:\n\n{table(['metric', *(line.name for line in lines)], cells)}"


def _metric(name: str, value: Estimate | None) -> str:
    """Write a metric: a share as a percentage, a loss in nats."""
    return nats(value).lstrip("+") if name in ("nll", "loss") else percent(value)


def _scaling(results: Results) -> str:
    if len(results.ranks) < 2:
        return ""
    name = short(results.models)
    rows = [
        [
            name(line.model),
            line.task,
            line.method,
            line.mode,
            str(line.rank),
            whole(line.mean("trainable")),
            str(len(line.rows)),
            percent(line.estimate("value")),
            *points(results.difference(line)),
            nats(line.estimate("forgetting")),
        ]
        for line in results.select()
        if line.rank in results.ranks and line.method not in ("base", "full")
    ]
    heads = [
        "model",
        "task",
        "method",
        "mode",
        "rank",
        "trainable",
        "seeds",
        "score",
        "to LoRA",
        "95 % items",
        "95 % items and seeds",
        "forgetting",
    ]
    return f"## Scaling\n\nThe rank is LoRA's; every method has the trainable parameters of that LoRA.\n\n{table(heads, rows)}"
