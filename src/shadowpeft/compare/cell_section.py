"""The section of a report on one model and one task: scores, partners, costs and further metrics."""

from collections.abc import Sequence

from shadowpeft.compare.method_result import MethodResult
from shadowpeft.compare.model_names import short
from shadowpeft.compare.records import number as number_of
from shadowpeft.compare.results import Results
from shadowpeft.reporting.stats import Estimate
from shadowpeft.reporting.tables import nats, number, percent, plural, points, ratio, table, whole

_QUALITY = (
    "method", "mode", "seeds", "score", "to LoRA", "95 % items", "95 % items and seeds", "trainable",
    "/ LoRA's", "forgetting", "ECE",
)  # fmt: skip
_PARTNERS = (
    "tested on", "method", "mode", "metric", "items", "score", "to LoRA", "95 % items",
    "95 % items and seeds",
)  # fmt: skip
_COSTS = (
    "method", "mode", "training s", "tokens/s", "peak GB", "adapter MB", "ms per answer", "timed",
)  # fmt: skip


def cell_section(results: Results, model: str, task: str) -> str:
    """Return the section of a model and the task trained on, at the main rank."""
    cells = results.select(model, task, results.rank)
    title = f"## {short(results.models)(model)}: {task}"
    if not cells:
        return f"{title}\n\nNo final results yet."
    parts = [
        title,
        _note(cells, results.rank),
        _quality(results, cells),
        _partners(results, model, task),
        _costs(results, cells),
        _details(cells),
    ]
    return "\n\n".join(part for part in parts if part)


def _note(cells: Sequence[MethodResult], rank: int) -> str:
    first = cells[0].records[0]
    items = " and ".join(f"{count:,}" for count in sorted({cell.items for cell in cells}))
    seeds = max(len(cell.records) for cell in cells)
    note = (
        f"{first['metric']} on {items} {first['split']} items, {seeds} {plural(seeds, 'seed')}, rank {rank}."
    )
    if any(_differs_from_marks(cell) for cell in cells):
        note += " The score is not the share of items answered correctly, which the differences are of."
    return note


def _differs_from_marks(cell: MethodResult) -> bool:
    """Return whether a score is not the share of items marked as right; F1 is not."""
    for record in cell.records:
        marks, value = record.get("correct"), number_of(record, "value")
        if marks and value is not None and abs(value - marks.count("1") / len(marks)) > 1e-6:
            return True
    return False


def _quality(results: Results, cells: Sequence[MethodResult]) -> str:
    rows = [
        [
            cell.method,
            cell.mode,
            str(len(cell.records)),
            percent(cell.estimate("value")),
            *points(results.difference(cell)),
            whole(cell.mean("trainable")),
            ratio(results.size_ratio(cell)),
            nats(cell.estimate("forgetting")),
            percent(cell.estimate("calibration.ece")),
        ]
        for cell in cells
    ]
    return table(_QUALITY, rows)


def _partners(results: Results, model: str, task: str) -> str:
    rows = [
        [
            partner,
            cell.method,
            cell.mode,
            cell.records[0]["metric"],
            whole(cell.items),
            percent(cell.estimate("value")),
            *points(results.difference(cell)),
        ]
        for partner in results.partners(model, task)
        for cell in results.select(model, task, results.rank, where=partner)
    ]
    if not rows:
        return ""
    return f"Out of distribution:\n\n{table(_PARTNERS, rows)}"


def _costs(results: Results, cells: Sequence[MethodResult]) -> str:
    costs = [(cell, results.cost(cell)) for cell in cells]
    rows = [
        [
            cell.method,
            cell.mode,
            number(cost["train_seconds"], 1),
            whole(cost["train_tokens_per_second"]),
            number(cost["peak_gb"], 2),
            number(cost["adapter_bytes"], 2),
            number(cost["ms_per_answer"], 1),
            "alone" if cost["alone"] else "in the study",
        ]
        for cell, cost in costs
    ]
    note = "Cost:"
    if any(cost["alone"] for _, cost in costs):
        note = (
            "Cost; where timed alone, no other run was on the device, "
            "and training seconds are its time per step times the steps of a run:"
        )
    elif results.study.workers > 1:
        note = (
            f"Cost, not yet timed alone: measured while up to {results.study.workers} runs shared a device, "
            "so the times are too long:"
        )
    return f"{note}\n\n{table(_COSTS, rows)}"


def _details(cells: Sequence[MethodResult]) -> str:
    primary = cells[0].records[0]["metric"]
    metrics = (record.get("metrics") or {} for cell in cells for record in cell.records)
    others = [name for name in dict.fromkeys(name for found in metrics for name in found) if name != primary]
    if not others:
        return ""
    rows = [[name, *(_metric(name, cell.estimate(f"metrics.{name}")) for cell in cells)] for name in others]
    return f"Further metrics:\n\n{table(['metric', *(cell.name for cell in cells)], rows)}"


def _metric(name: str, value: Estimate | None) -> str:
    """Write a metric: a share as a percentage, a loss in nats."""
    if name in ("nll", "loss"):
        return nats(value).lstrip("+")
    return percent(value)
