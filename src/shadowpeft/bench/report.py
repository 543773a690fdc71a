"""The table of a run: each method's time and memory, beside those of LoRA, PEFT's Shadow and the base."""

from collections.abc import Sequence
from typing import Any

from shadowpeft.bench.measurements import Measurement
from shadowpeft.reporting.tables import number, ratio, table, whole

# What the others are compared with: its name among the measurements, and the head of its column.
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
_MEDIAN = (
    "in milliseconds: the median, ± half the range that holds the middle half of them. "
    "Peak is over the weights, in 10^9 bytes."
)
_READING = {
    "train": f"A step is forward, backward and optimizer step, {_MEDIAN} The floor is the frozen base that "
    "hands gradients through, with the loss that ours uses (`base-chunked`).",
    "forward": f"A prompt is read as `generate` reads it, {_MEDIAN}",
}


def markdown(measurements: Sequence[Measurement]) -> str:
    """Lay out the measurements of one run as Markdown, with a table for each shape."""
    if not measurements:
        return "Nothing was measured."
    first = measurements[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    made = f"Run {first['run']} on {first['device']}; commit {first['commit'] or 'unknown'}; {versions}."
    sections = [_section(group, first["kind"]) for group in _by_shape(measurements)]
    return "\n\n".join([*sections, _READING[first["kind"]], made, f"```sh\n{first['command']}\n```"])


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return every method's time and peak over those of the references, for programs."""
    found = []
    for group in _by_shape(measurements):
        for entry in group:
            kind = entry["kind"]
            times = {f"ms/{name}": over(entry, group, name, field="ms") for name in _REFERENCES[kind]}
            peaks = {f"peak_gb/{name}": over(entry, group, name, field="peak_gb") for name in _PEAKS}
            which = {name: entry.get(name) for name in ("shape", "name", "adapter_dtype")}
            found.append({**which, **times, **peaks})
    return found


def over(entry: Measurement, group: Sequence[Measurement], reference: str, field: str) -> float | None:
    """Divide a field by that of the reference in the same group; `None` if either is unknown.

    Only what is trained in one type is compared. What trains nothing has none, and is compared with all;
    among references of several types it has no counterpart.
    """
    named = [candidate for candidate in group if candidate["name"] == reference]
    alike = [
        candidate
        for candidate in named
        if None in (own_type(candidate), own_type(entry)) or own_type(candidate) == own_type(entry)
    ]
    if len(alike) != 1:
        return None
    (other,) = alike
    if entry[field] is None or not other[field]:
        return None
    return entry[field] / other[field]


def own_type(entry: Measurement) -> str | None:
    """Name the type of what is trained, with `autocast` where the step ran under it.

    It is `None` where nothing is trained. Before a measurement had its own type, one choice held for a run.
    """
    asked = entry["adapter_dtype"]
    if "trained_dtype" not in entry:
        former = {"float32": "float32, autocast", "own": "own"}
        return former.get(asked, entry["dtype"])
    if asked == "autocast":
        return "float32, autocast"
    return entry["trained_dtype"] or asked


def _by_shape(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    groups: dict[str, list[Measurement]] = {}
    for entry in measurements:
        groups.setdefault(entry["shape"], []).append(entry)
    return list(groups.values())


def _section(group: Sequence[Measurement], kind: str) -> str:
    measured = [entry for entry in group if entry["ms"] is not None]
    times = {
        name: head
        for name, head in _REFERENCES[kind].items()
        if any(entry["name"] == name and entry["ms"] for entry in group)
    }
    has_peaks = any(entry["peak_gb"] for entry in group)
    peaks = [name for name in _PEAKS if name in times and has_peaks]
    heads = [
        "method",
        "trained in",
        "inject from",
        "ms",
        "tokens/s",
        "peak GB",
        "trainable",
        *(f"/ {head}" for head in times.values()),
        *(f"peak / {times[name]}" for name in peaks),
    ]
    rows = [_row(entry, group, times=list(times), peaks=peaks) for entry in measured]
    parts = [_title(group[0], kind), table(heads, rows)]
    missing = [_missing(entry) for entry in group if entry["status"] != "ok"]
    if missing:
        parts.append("Not measured to the end:\n\n" + "\n".join(missing))
    return "\n\n".join(parts)


def _missing(entry: Measurement) -> str:
    kind = own_type(entry)
    return f"- `{entry['name']}`{f' ({kind})' if kind else ''}: {entry['status']}"


def _title(first: Measurement, kind: str) -> str:
    what = "a training step" if kind == "train" else "a prefill"
    title = f"## {first['shape']}: {what} of {first['batch']} x {first['tokens']:,} tokens, {first['dtype']}"
    if first.get("checkpointing"):
        title += ", gradient checkpointing"
    return title


def _row(entry: Measurement, group: Sequence[Measurement], times: list[str], peaks: list[str]) -> list[str]:
    ms = f"{entry['ms']:.1f}"
    if entry["ms_spread"] is not None:
        ms += f" ± {entry['ms_spread'] / 2:.1f}"
    return [
        f"`{entry['name']}`",
        own_type(entry) or "-",
        whole(entry["inject_from"]),
        ms,
        whole(entry["tokens_per_second"]),
        number(entry["peak_gb"], 2),
        whole(entry["trainable"]),
        *(ratio(over(entry, group, name, field="ms")) for name in times),
        *(ratio(over(entry, group, name, field="peak_gb")) for name in peaks),
    ]
