"""`shadowpeft doctor`."""

import json as jsonlib
from typing import Any


def run(json: bool = False) -> None:
    """Show versions, devices, which extras are installed and which model families are supported.

    Args:
        json: print the facts as JSON.
    """
    from shadowpeft.doctor import examine

    facts = examine()
    if json:
        print(jsonlib.dumps(facts, indent=2))
        return
    _show(facts)


def _show(facts: dict[str, Any]) -> None:
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
