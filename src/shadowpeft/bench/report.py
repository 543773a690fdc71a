"""The table of a run: one line a method, with its time and memory beside those of LoRA, PEFT's Shadow and the frozen base."""

from collections.abc import Sequence
from typing import Any

from shadowpeft.bench.record import Row
from shadowpeft.reporting.tables import number, ratio, table, whole

# What others are compared with: its name in the rows, and at the head of its column.
_REFERENCES = {
    "train": {
        "lora": "LoRA",
        "peft-shadow": "PEFT Shadow",
        "base-chunked": "floor",
        "lora+compiled": "LoRA compiled",
        "base-chunked+compiled": "floor compiled",
    },
    "forward": {
        "base": "base",
        "lora": "LoRA",
        "peft-shadow": "PEFT Shadow",
        "base+compiled": "base compiled",
    },
}
_PEAKS = ("lora",)
_MEDIAN = "in milliseconds: the median, ± half the range that holds the middle half of them. Peak is over the weights, in 10^9 bytes."
_READING = {
    "train": f"A step is forward, backward and optimizer step, {_MEDIAN} The floor is the frozen base that hands gradients through, with "
    "the loss that ours uses (`base-chunked`).",
    "forward": f"A prompt is read as `generate` reads it, {_MEDIAN}",
}


def markdown(rows: Sequence[Row]) -> str:
    """Lay out the rows of one run as Markdown, a table for each shape."""
    if not rows:
        return "Nothing was measured."
    kind, first = rows[0]["kind"], rows[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    made = f"Run {first['run']} on {first['device']}; commit {first['commit'] or 'unknown'}; {versions}."
    return "\n\n".join(
        [
            *(_section(group, kind) for group in _groups(rows)),
            _READING[kind],
            made,
            f"```sh\n{first['command']}\n```",
        ]
    )


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Give every method's time and peak over those of the references, for programs."""
    kind = rows[0]["kind"] if rows else "train"
    found = []
    for group in _groups(rows):
        for row in group:
            times = {f"ms/{name}": over(row, group, name, "ms") for name in _REFERENCES[kind]}
            peaks = {f"peak_gb/{name}": over(row, group, name, "peak_gb") for name in _PEAKS}
            found.append({"shape": row["shape"], "name": row["name"], **times, **peaks})
    return found


def over(row: Row, group: Sequence[Row], reference: str, field: str) -> float | None:
    """Divide a row's field by that of the reference in its group; `None` where either is unknown."""
    other = next((entry for entry in group if entry["name"] == reference), None)
    if other is None or row[field] is None or not other[field]:
        return None
    return row[field] / other[field]


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["shape"], []).append(row)
    return list(groups.values())


def _section(group: Sequence[Row], kind: str) -> str:
    first = group[0]
    what = "a training step" if kind == "train" else "a prefill"
    more = ", gradient checkpointing" if first.get("checkpointing") else ""
    adapters = "" if first["adapter_dtype"] == "base" else f", trained weights {first['adapter_dtype']}"
    title = f"## {first['shape']}: {what} of {first['batch']} x {first['tokens']:,} tokens, {first['dtype']}{adapters}{more}"
    shown = {
        name: head
        for name, head in _REFERENCES[kind].items()
        if any(row["name"] == name and row["ms"] for row in group)
    }
    heads = [
        "method",
        "inject from",
        "ms",
        "tokens/s",
        "peak GB",
        "trainable",
        *(f"/ {head}" for head in shown.values()),
    ]
    peaks = [name for name in _PEAKS if name in shown and any(row["peak_gb"] for row in group)]
    heads += [f"peak / {shown[name]}" for name in peaks]
    lines = [_line(row, group, list(shown), peaks) for row in group if row["ms"] is not None]
    missing = [f"- `{row['name']}`: {row['status']}" for row in group if row["status"] != "ok"]
    return "\n\n".join(
        [
            title,
            table(heads, lines),
            *(["Not measured to the end:\n\n" + "\n".join(missing)] if missing else []),
        ]
    )


def _line(row: Row, group: Sequence[Row], times: list[str], peaks: list[str]) -> list[str]:
    spread = "" if row["ms_spread"] is None else f" ± {row['ms_spread'] / 2:.1f}"
    return [
        f"`{row['name']}`",
        whole(row["inject_from"]),
        f"{row['ms']:.1f}{spread}",
        whole(row["tokens_per_second"]),
        number(row["peak_gb"], 2),
        whole(row["trainable"]),
        *(ratio(over(row, group, name, "ms")) for name in times),
        *(ratio(over(row, group, name, "peak_gb")) for name in peaks),
    ]
