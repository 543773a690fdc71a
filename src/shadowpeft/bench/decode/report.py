"""The table of a run: what a token takes with each method and way, beside the base in the same way."""

from collections.abc import Sequence
from typing import Any

from shadowpeft.bench.measurements import Measurement
from shadowpeft.reporting.tables import number, ratio, table, whole

# What the others are compared with, and the head of its column.
_REFERENCES = {"base": "base", "lora-merged": "merged LoRA", "shadow": "attached"}
_SAME = ("shape", "model", "adapter", "shadow", "data", "batch", "context", "new_tokens", "dtype", "run")
_READING = (
    "A token's time is in milliseconds: the median, ± half the range that holds the middle half, and the "
    "time to the first token is apart. Ratios are of a token's time, to the same way. `generate` is what a "
    "user calls, `graph` the one-token step in a CUDA graph, `compiled` what transformers compiles with a "
    "static cache: to compile is its first call beyond a later one."
)


def markdown(measurements: Sequence[Measurement]) -> str:
    """Lay out measurements as Markdown, with a table for each base, batch and context of each run."""
    if not measurements:
        return "Nothing was measured."
    groups = _groups(measurements)
    parts = [_section(group) for group in groups]
    runs = {group[0]["run"]: group[0] for group in groups}
    return "\n\n".join([*parts, _READING, *map(_made, runs.values())])


def ratios(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return every method's time a token over those of the references in the same way, for programs."""
    found = []
    for group in _groups(measurements):
        for entry in group:
            which = {
                name: entry[name] for name in ("shape", "model", "batch", "context", "way", "name", "run")
            }
            found.append({**which, **{f"ms/{name}": over(entry, group, name) for name in _REFERENCES}})
    return found


def over(
    entry: Measurement, group: Sequence[Measurement], reference: str, field: str = "ms_per_token"
) -> float | None:
    """Divide a field by that of the reference in the same way; `None` if either is unknown."""
    for other in group:
        if other["name"] == reference and other["way"] == entry["way"]:
            return entry[field] / other[field] if entry[field] and other[field] else None
    return None


def _groups(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Divide measurements by all that their ratios must share."""
    groups: dict[tuple[Any, ...], list[Measurement]] = {}
    for entry in measurements:
        groups.setdefault(tuple(entry[name] for name in _SAME), []).append(entry)
    return list(groups.values())


def _section(group: Sequence[Measurement]) -> str:
    compared = {
        name: head
        for name, head in _REFERENCES.items()
        if any(entry["name"] == name and entry["ms_per_token"] for entry in group)
    }
    drafts = any(entry["tokens_per_round"] for entry in group)
    heads = ["method", "way", "ms a token", "tokens/s", *(f"/ {head}" for head in compared.values())]
    heads += ["first token, ms", "to compile, s", *(["tokens a round", "acceptance"] if drafts else [])]
    measured = [entry for entry in group if entry["ms_per_token"] is not None]
    parts = [_title(group[0])]
    if measured:
        parts.append(table(heads, [_row(entry, group, list(compared), drafts) for entry in measured]))
    missing: dict[str, list[str]] = {}
    for entry in group:
        if entry["status"] != "ok":
            missing.setdefault(f"{entry['way']}: {entry['status']}", []).append(f"`{entry['name']}`")
    if missing:
        lines = [f"- {', '.join(names)}, {why}" for why, names in missing.items()]
        parts.append("Not measured to the end:\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _title(first: Measurement) -> str:
    beside = "".join(f", {name} {first[name]}" for name in ("adapter", "shadow") if first[name])
    prompt = f"{first['batch']} x {first['context']:,} tokens and {first['new_tokens']} new ones"
    if first["data"]:
        prompt = (
            f"{first['texts']} texts of {first['data']}, on average {first['context']:,} tokens and "
            f"{first['new_tokens']} new ones"
        )
    return f"## {first['shape'] or first['model']}{beside}: {prompt}, {first['dtype']}"


def _row(entry: Measurement, group: Sequence[Measurement], compared: list[str], drafts: bool) -> list[str]:
    ms = number(entry["ms_per_token"], 3)
    if entry["ms_spread"] is not None:
        ms += f" ± {entry['ms_spread'] / 2:.3f}"
    cells = [f"`{entry['name']}`", entry["way"], ms, number(entry["tokens_per_second"], 1)]
    cells += [ratio(over(entry, group, name)) for name in compared]
    cells += [number(entry["first_token_ms"], 1), whole(entry["compile_seconds"])]
    if drafts:
        shares = " ".join(f"{share:.2f}" for share in (entry["acceptance"] or [])[:4])
        cells += [number(entry["tokens_per_round"], 2), shares or "-"]
    return cells


def _made(first: Measurement) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    made = f"Run {first['run']} on {first['device']}; commit {first['commit'] or 'unknown'}; {versions}."
    return f"{made}\n\n```sh\n{first['command']}\n```"
