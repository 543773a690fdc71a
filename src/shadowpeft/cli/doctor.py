"""`shadowpeft doctor`."""

import json as jsonlib
from typing import Any

# Of the sizes of base and shadow, those that are shown.
_SIZES = (
    "parameters",
    "backbone",
    "blocks",
    "width",
    "shadow_layers",
    "shadow_intermediate_size",
    "r",
    "update_width",
)


def run(model: str | None = None, json: bool = False) -> None:
    """Show versions, devices, extras and supported model families; with --model, what a model can do here.

    Args:
        model: folder or hub id of a model. Its config.json alone is read: which row of the table of families
            it has and what it can do, or the row that it would need and what of it does not fit.
        json: print the facts as JSON.
    """
    facts = _facts(model)
    if json:
        print(jsonlib.dumps(facts, indent=2))
    elif model is None:
        _show(facts)
    else:
        print("\n".join(_lines(facts)))


def _facts(source: str | None) -> dict[str, Any]:
    from shadowpeft.doctor import machine, model

    return machine.examine() if source is None else model.examine(source)


def _lines(facts: dict[str, Any]) -> list[str]:
    """Say what is known of a model, a line each."""
    pairs = {
        "model": facts["model"],
        "model type": facts["model_type"],
        "multimodal": facts["multimodal"] and f"{facts['multimodal']}, on its text path",
        "row": facts["family"] or "none in the table of families",
        "language model": facts["causal"] or "none in transformers",
        "classifier": facts["classifier"] or "none in transformers",
    }
    for part in ("base", "shadow"):
        sizes = facts.get(part) or {}
        pairs[part] = ", ".join(f"{name} {sizes[name]:,}" for name in _SIZES if name in sizes)
    for name, answer in facts.get("can", {}).items():
        pairs[name.replace("_", " ")] = "yes" if answer is True else f"no: {answer}"
    for name, value in facts.get("found", {}).items():
        pairs[f"found: {name}"] = str(value)
    width = max(map(len, pairs))
    lines = [f"{name:<{width}}  {value}" for name, value in pairs.items() if value]
    if facts.get("proposed"):
        lines += ["", "A row to begin with, for src/shadowpeft/arch/families.py:", facts["proposed"]]
        lines.append(f"Not looked for, and by default as in Llama: {', '.join(facts['by_hand'])}.")
    for title, sentences in (
        ("What does not fit:", facts["misfits"]),
        ("Left open in config.json:", facts.get("open_fields", [])),
    ):
        if sentences:
            lines += ["", title, *(f"- {sentence}" for sentence in sentences)]
    return lines


def _show(facts: dict[str, Any]) -> None:
    """Print what this machine has as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("shadowpeft", facts["shadowpeft"])
    table.add_row("python", f"{facts['python']} on {facts['platform']}")
    for name, version in facts["versions"].items():
        table.add_row(name, version or "[dim]not installed[/dim]")
    for device in facts["devices"]:
        shown = device["name"]
        if "memory_gib" in device:
            shown += f", {device['memory_gib']} GiB"
        table.add_row(device["device"], shown)
    for extra, missing in facts["extras"].items():
        state = "[green]complete[/green]"
        if missing:
            state = f"[yellow]lacks {', '.join(missing)}[/yellow]"
        # The backslash keeps rich from reading the name as markup.
        table.add_row(f"\\[{extra}]", state)
    table.add_row("families", ", ".join(facts["families"]))
    Console().print(table)
