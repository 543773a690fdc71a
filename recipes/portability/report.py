"""Write the tables of the record on portability from its rows.

    python recipes/portability/report.py ROWS.jsonl

Prints Markdown. A share right has its 95 % interval over seeds. Differences are in points, with the 95 %
interval over test items, and over items and seeds: the one that the rule reads.

Raises:
    SystemExit: the shadow trained over 1 % more or fewer parameters than LoRA.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shadowpeft.reporting import stats, tables

TOLERANCE = 0.01
Row = dict[str, Any]
Marks = dict[int, str]
# Method, mode, arm, and the name of the line.
LINES = (
    ("lora", "attached", "untouched", "LoRA, untouched"),
    ("lora", "attached", "everything", "LoRA, everything refitted"),
    ("lora", "attached", "anew", "LoRA, trained anew"),
    ("shadow", "attached", "untouched", "shadow attached, untouched"),
    ("shadow", "attached", "boundaries", "shadow attached, boundaries refitted"),
    ("shadow", "attached", "shadow", "shadow attached, its block refitted"),
    ("shadow", "attached", "everything", "shadow attached, everything refitted"),
    ("shadow", "attached", "anew", "shadow attached, trained anew"),
    ("shadow", "detached", "untouched", "shadow rebuilt detached, untouched"),
    ("shadow", "detached", "shadow", "shadow rebuilt detached, its block refitted"),
    ("shadow", "detached", "everything", "shadow rebuilt detached, everything refitted"),
    ("shadow", "detached", "anew", "shadow detached, trained anew"),
)


class Rows:
    """The rows of one run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.bases = [row for row in self.rows if row["what"] == "base"]
        self.stages = [row["stage"] for row in self.bases]
        self.last = max(self.stages)
        self._refuse_unequal()

    def _refuse_unequal(self) -> None:
        counts = {
            method: row["trainable"]
            for method in ("lora", "shadow")
            for row in self.of(method, "attached", 0, "v1")
        }
        if len(counts) == 2 and abs(counts["shadow"] / counts["lora"] - 1) > TOLERANCE:
            raise SystemExit(
                f"expected as many trained parameters within 1 %, got {counts}; choose another --rank"
            )

    def of(self, method: str, mode: str, stage: int, arm: str) -> list[Row]:
        """Return the rows of an arm, one a seed."""
        wanted = {"what": "adapter", "method": method, "mode": mode, "stage": stage, "arm": arm}
        return [row for row in self.rows if wanted.items() <= row.items()]

    def marks(self, method: str, mode: str, stage: int, arm: str) -> Marks:
        """Return what was answered right, by seed."""
        return {row["seed"]: row["correct"] for row in self.of(method, mode, stage, arm)}

    def mean(self, method: str, mode: str, stage: int, arm: str, field: str) -> stats.Estimate | None:
        """Average a field over seeds."""
        return stats.mean_interval([row[field] for row in self.of(method, mode, stage, arm)])

    def lost(self, method: str, mode: str, stage: int) -> np.ndarray:
        """Return v1 minus untouched on a stage, (seeds, items)."""
        return stats.paired(self.marks(method, mode, 0, "v1"), self.marks(method, mode, stage, "untouched"))

    def behind(self, method: str, mode: str, arm: str) -> np.ndarray:
        """Return an arm minus training anew, on the last stage."""
        return stats.paired(
            self.marks(method, mode, self.last, arm), self.marks(method, mode, self.last, "anew")
        )


def bases(rows: Rows) -> str:
    """Say how far v2 has moved from v1."""
    heads = ["", "wiki", "dolly", "prompts", "all weights", "embeddings", "the rest", "seconds"]
    lines = []
    for row in rows.bases:
        losses, moved = row["losses"], row["moved"]
        lines.append([
            name_of(row["stage"]), *(f"{losses[part]:.3f}" for part in ("wiki", "dolly", "prompts")),
            *(f"{moved[part]:.4f}" for part in ("all", "embeddings", "blocks")),
            f"{row['train_seconds']:.0f}",
        ])  # fmt: skip
    return tables.table(heads, lines)


def name_of(stage: int) -> str:
    return "v1" if stage == 0 else f"v2, {stage:,} steps"


def arms(rows: Rows, field: str) -> str:
    """Tabulate a field of all arms: on v1 as trained there, on v2 by stage."""
    lines = []
    for method, mode, arm, name in LINES:
        cells = [name]
        for stage in rows.stages:
            on_v1 = "v1" if arm == "untouched" else ""
            cells.append(cell(rows.mean(method, mode, stage, arm if stage else on_v1, field), field))
        lines.append(cells)
    kept = cell(rows.mean("shadow", "detached", 0, "v1", field), field)
    lines.append(["shadow detached, kept", *[kept] * len(rows.stages)])
    return tables.table(["", *map(name_of, rows.stages)], lines)


def cell(found: stats.Estimate | None, field: str) -> str:
    if field == "accuracy":
        return tables.percent(found)
    if found is None:
        return tables.UNKNOWN
    return f"{found.mean:.3f}" + (f" ± {found.margin:.3f}" if found.margin is not None else "")


def differences(rows: Rows) -> str:
    """Tabulate what is lost, and what refitting leaves open to training anew."""
    lines = []
    for stage in rows.stages[1:]:
        if not rows.of("shadow", "attached", stage, "untouched"):
            continue
        lora, ours = rows.lost("lora", "attached", stage), rows.lost("shadow", "attached", stage)
        where = name_of(stage)
        lines += [
            line(f"{where}: LoRA lost minus the shadow lost", lora - ours),
            line(f"{where}: LoRA, untouched minus v1", -lora),
            line(f"{where}: shadow attached, untouched minus v1", -ours),
            line(f"{where}: shadow rebuilt detached minus kept", -rows.lost("shadow", "detached", stage)),
        ]
    for method, mode, arm, name in LINES:
        if arm != "anew" and rows.of(method, mode, rows.last, "anew"):
            lines.append(line(f"{name}, minus anew", rows.behind(method, mode, arm)))
    kept, anew = (
        rows.marks("shadow", "detached", 0, "v1"),
        rows.marks("shadow", "detached", rows.last, "anew"),
    )
    if kept.keys() & anew.keys():
        lines.append(line("shadow detached, kept, minus anew", stats.paired(kept, anew)))
    return tables.table(["", "points", "over items", "over items and seeds"], lines)


def line(name: str, cells: np.ndarray) -> Sequence[str]:
    return [name, *tables.points(stats.difference(cells))]


def seconds(rows: Rows) -> str:
    """Tabulate what trainings took, over all seeds and stages."""
    lines = []
    for method in ("lora", "shadow"):
        for arm in ("v1", "anew", "boundaries", "shadow", "everything"):
            found = [row for stage in rows.stages for row in rows.of(method, "attached", stage, arm)]
            if found:
                times = [
                    np.mean([row[f"train_{kind}"] for row in found]) for kind in ("seconds", "cpu_seconds")
                ]
                lines.append([method, arm, str(found[0]["steps"]), f"{found[0]['trainable']:,}",
                              *(f"{time:.1f}" for time in times)])  # fmt: skip
    return tables.table(["method", "what it is", "steps", "trained", "seconds", "processor seconds"], lines)


def chosen(rows: Rows) -> str:
    """Tabulate what was tried on validation rows."""
    tried = [row for row in rows.rows if row["what"] in ("search", "search refit")]
    lines = [
        [row["method"], row.get("arm", "on v1"), f"{row.get('rate', row.get('factor')):g}",
         f"{100 * row['accuracy']:.1f}", f"{row['nll']:.3f}"]
        for row in tried
    ]  # fmt: skip
    return tables.table(["method", "what it is", "rate or factor", "right", "nll"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    text = parser.parse_args().rows.read_text(encoding="utf-8")
    rows = Rows(json.loads(line) for line in text.splitlines())
    parts = {
        "How far v2 has moved": bases(rows), "Right, in percent": arms(rows, "accuracy"),
        "Nats an answer": arms(rows, "nll"), "Differences": differences(rows), "Seconds": seconds(rows),
        "Tried on validation rows": chosen(rows),
    }  # fmt: skip
    print("\n\n".join(f"## {name}\n\n{part}" for name, part in parts.items()))


if __name__ == "__main__":
    main()
