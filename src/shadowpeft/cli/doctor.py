"""`shadowpeft doctor`."""

import json as jsonlib


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

    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("shadowpeft", facts["shadowpeft"])
    table.add_row("python", f"{facts['python']} on {facts['platform']}")
    for name, version in facts["versions"].items():
        table.add_row(name, version or "[dim]not installed[/dim]")
    for device in facts["devices"]:
        memory = f", {device['memory_gib']} GiB" if "memory_gib" in device else ""
        table.add_row(device["device"], f"{device['name']}{memory}")
    for extra, missing in facts["extras"].items():
        table.add_row(
            f"\\[{extra}]",
            f"[yellow]lacks {', '.join(missing)}[/yellow]" if missing else "[green]complete[/green]",
        )
    table.add_row("families", ", ".join(facts["families"]))
    Console().print(table)
