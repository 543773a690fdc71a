"""Pairs of runs, the shadow's and LoRA's, from one seed on one pair of model and task, and their differences.

A run that diverged answers nothing right, and means of nats leave it out.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from planning import Key, Pair, has_diverged, key_of

from shadowpeft.reporting.stats import Difference, average, mean_of_means, paired

TOLERANCE = 0.01
MATHS = "gsm8k"
NAMES = {
    "models/gemma-3-270m": "gemma",
    "models/qwen2.5-coder-0.5b": "qwen",
    "src/shadowpeft/embedded/model": "embedded",
}
DIFFERENCE = (
    "pairs", "seeds", "points", "95 % over items", "95 % over items and seeds", "nats ± 95 % over seeds",
    "lower nats in",
)  # fmt: skip

Row = dict[str, Any]
Run = tuple[Row, Row]


def results(rows: Sequence[Row]) -> dict[Key, Row]:
    """Return the rows of the runs that ended, by run; of one that diverged as a row of wrong answers."""
    ended = {key_of(row["job"]): row for row in rows if row["status"] == "ok"}
    items = {key[1:3]: row["items"] for key, row in ended.items()}
    for row in rows:
        key = key_of(row["job"])
        if has_diverged(row) and key[1:3] in items:
            wrong = {"metrics": {"accuracy": 0.0, "nll": math.inf}, "items": items[key[1:3]]}
            ended[key] = {**row, **wrong, "correct": "0" * wrong["items"]}
    return ended


def lost(row: Row) -> float:
    """Return nats an item, of gsm8k nats a token."""
    return float(row["metrics"]["nll" if "nll" in row["metrics"] else "loss"])


def points(row: Row) -> float:
    """Return percent of the items answered right; not a number on gsm8k, where nothing is answered."""
    return 100 * float(row["metrics"].get("accuracy", math.nan))


def refuse_unequal(rows: Iterable[Row]) -> str:
    """Return how many parameters each method trains; stop if they are not equal."""
    sizes: dict[Pair, dict[str, int]] = {}
    for row in rows:
        made = row["job"]
        # Of a run that diverged nothing was counted.
        if row["trainable"] is None:
            continue
        sizes.setdefault((made["model"], made["task"]), {})[made["method"]] = row["trainable"]
    said = []
    for (model, task), of in sizes.items():
        if not {"lora", "shadow"} <= of.keys():
            continue
        lora, shadow = of["lora"], of["shadow"]
        if abs(shadow / lora - 1) > TOLERANCE:
            raise SystemExit(f"the shadow trains {shadow:,} parameters, LoRA {lora:,} ({model}, {task})")
        said.append(f"{NAMES[model]} {task} {shadow:,} and {lora:,}")
    return "; ".join(said)


def compared(runs: dict[Pair, dict[int, Run]]) -> list[str]:
    """Compare the runs that both have: pairs, seeds, points with their intervals, and nats.

    All means are of the pairs' means.
    """
    if not runs:
        return []
    gaps = [[lost(one) - lost(two) for one, two in found.values()] for found in runs.values()]
    cells = [f"{len(runs)}", " ".join(map(str, sorted({seed for found in runs.values() for seed in found})))]
    if any(task == MATHS for _, task in runs):
        cells += [""] * 3
    else:
        cells += _points(runs)
    every = [gap for of in gaps for gap in of if math.isfinite(gap)]
    return [*cells, mean_nats(gaps), f"{sum(gap < 0 for gap in every)} of {len(every)}"]


def mean_nats(groups: Sequence[Sequence[float]]) -> str:
    """Write the mean of the pairs' means with its interval over seeds, and how many runs had diverged."""
    kept = [[gap for gap in of if math.isfinite(gap)] for of in groups]
    found = mean_of_means(kept)
    if found is None:
        return ""
    margin = "" if found.margin is None else f" ± {found.margin:.4f}"
    out = sum(map(len, groups)) - found.count
    return f"{found.mean:+.4f}{margin}" + (f" ({out} left out)" if out else "")


def _points(runs: dict[Pair, dict[int, Run]]) -> list[str]:
    marks = []
    for (_, task), found in runs.items():
        ours, theirs = ({seed: run[at]["correct"] for seed, run in found.items()} for at in (0, 1))
        marks.append((task, paired(ours, theirs)))
    return spans_of(average(marks))


def spans_of(result: Difference) -> list[str]:
    """Write a difference in points with both intervals."""
    spans = [f"{100 * span[0]:+.2f} to {100 * span[1]:+.2f}" if span else "" for span in
             (result.items, result.items_and_seeds)]  # fmt: skip
    return [f"{100 * result.value:+.2f}", *spans]


def failures(rows: Sequence[Row]) -> Iterable[str]:
    """Yield a line for each run that failed, and one that counts those that ended."""
    ended = results(rows)
    for row in rows:
        if row["status"] != "ok" and not has_diverged(row):
            made = row["job"]
            then = "ended at another try" if key_of(made) in ended else "never ended"
            what = f"{made['name']}, {NAMES[made['model']]} {made['task']}, seed {made['seed']}"
            yield f"- {what}: {row['status']}, {then}"
    diverged = sum(map(has_diverged, rows))
    done = diverged + sum(row["status"] == "ok" for row in rows)
    yield f"- {done} of {len(rows)} runs ended, {diverged} of them diverged."


def read_rows(path: Path | None) -> list[Row]:
    """Read rows; none without a file."""
    if path is None:
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
