"""What a command that was stopped leaves for the next one: its rows, v2, and the adapters trained on v1."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import adapters
import torch

Row = dict[str, Any]
# Flags that may differ between the commands of one run.
FREE = ("output", "work", "budget")


class Adapter(NamedTuple):
    """A trained adapter, and what it cost."""

    state: adapters.State
    steps: int
    seconds: float
    cpu_seconds: float


class Rows:
    """The file of rows, appended to.

    Args:
        path: the file.
        facts: what every row tells besides.
    """

    def __init__(self, path: Path, facts: Row) -> None:
        self.path, self.facts = path, facts
        self.rows: list[Row] = []
        if path.exists():
            self.rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def find(self, **wanted: Any) -> Row | None:
        """Return the first row with these fields, `None` if there is none."""
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def write(self, row: Row) -> Row:
        """Append a row, say so, and return it."""
        row = {**row, **self.facts}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        say(json.dumps({name: row[name] for name in row if name not in ("correct", "settings", "versions")}))
        return row

    def refuse_other(self, flags: dict[str, str]) -> None:
        """Refuse to go on with rows of other flags.

        Raises:
            SystemExit: names the flags.
        """
        before = self.find(what="run")
        if before is None:
            return
        others = [name for name in flags if name not in FREE and flags[name] != before["flags"].get(name)]
        if others:
            raise SystemExit(
                f"expected the flags of the rows in {self.path}, got another {', '.join(others)}; give "
                "another --output and --work"
            )


class Work:
    """The folder of what was trained."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what the folder holds under a name, or make it and keep it."""
        path = self.folder / f"{name}.pt"
        if path.exists():
            return torch.load(path, weights_only=True)
        found = make()
        # Under another name first: a command that is killed must not leave half a file.
        new = path.with_suffix(".new")
        torch.save(found, new)
        new.replace(path)
        return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
