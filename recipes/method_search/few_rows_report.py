"""Compute every figure of a record on few rows from its rows.

    python recipes/method_search/few_rows_report.py ROWS.jsonl ... [--place gpu]

Prints Markdown: the settings tried, and the differences at each number of rows by task, from the seeds that
chose nothing. Differences are shadow minus LoRA: in nll in nats an item, in accuracy in points.

Raises:
    SystemExit: the shadow trained over 1 % more or fewer parameters than LoRA, or on other rows.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from few_rows import FIRST, METHODS, SIZES, best, seeds, tried
from head_rate_report import table
from paired_runs import (
    DIFFERENCE,
    NAMES,
    Row,
    Run,
    compared,
    failures,
    lost,
    points,
    refuse_unequal,
    results,
)
from places import Place, rows_and_place
from planning import Ended, Pair, key_of


class Rows:
    """The rows of runs that ended.

    Attributes:
        all: the rows.
        place: where the runs were made.
        ended: what the planner makes of the rows.
        by_key: rows by run.
    """

    def __init__(self, rows: Sequence[Row], place: Place) -> None:
        self.all, self.place, self.ended = rows, place, Ended(rows)
        self.by_key = results(rows)

    def of(self, method: str, rows: int, pair: Pair, seed: int) -> Row | None:
        """Return the row of the setting that was chosen; `None` before it was, or where it did not run."""
        one = best(self.place, method, rows, self.ended)
        return self.by_key.get(key_of(one.job(self.place, pair, seed))) if one else None

    def both(self, rows: int, pair: Pair) -> dict[int, Run]:
        """Return the shadow's row and LoRA's from each seed that chose nothing and that both have."""
        found = {}
        for seed in seeds(self.place):
            shadow, lora = (self.of(method, rows, pair, seed) for method in ("shadow", "lora"))
            if shadow and lora:
                found[seed] = shadow, lora
        return found


def refuse_other_rows(rows: Rows) -> str:
    """Return how many answers the rows hold that were learnt from; stop if two methods had other rows."""
    digests: dict[tuple[str, str, int, int], set[str]] = {}
    labels: dict[tuple[int, str], list[int]] = {}
    for row in rows.by_key.values():
        # Rows of another model are the same; their tokens, and so their digests, are not.
        made, drawn = row["job"], row["drawn"]
        digests.setdefault((made["model"], made["task"], drawn["rows"], made["seed"]), set()).add(
            drawn["digest"]
        )
        labels.setdefault((drawn["rows"], made["task"]), []).append(drawn["labels"])
    for (model, task, count, seed), found in digests.items():
        if len(found) > 1:
            raise SystemExit(f"not all runs had the same {count} rows ({model}, {task}, seed {seed})")
    return "; ".join(f"{count} rows of {task}: {np.mean(of):.0f}" for (count, task), of in labels.items())


def settings(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each setting from the first seed: mean nll and points."""
    for size in SIZES:
        for method in METHODS:
            chosen = best(rows.place, method, size, rows.ended)
            for one in tried(rows.place, method, size):
                jobs = [one.job(rows.place, pair, FIRST) for pair in rows.place.pairs]
                found = [row for row in (rows.by_key.get(key_of(made)) for made in jobs) if row]
                means = [f"{np.mean([value(row) for row in found]):.{digits}f}" if found else ""
                         for value, digits in ((lost, 4), (points, 1))]  # fmt: skip
                name = jobs[0]["name"].split()
                yield [str(size), method, name[1], f"{one.dropout:g}", str(len(found)), *means,
                       "chosen" if one == chosen else ""]  # fmt: skip


def differences(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each number of rows: over all pairs, and without each task."""
    for size in SIZES:
        runs = {pair: found for pair in rows.place.pairs if (found := rows.both(size, pair))}
        if not runs:
            continue
        yield [str(size), "all", *compared(runs)]
        tasks = dict.fromkeys(task for _, task in runs)
        for task in tasks if len(tasks) > 1 else ():
            rest = {pair: found for pair, found in runs.items() if pair[1] != task}
            yield [str(size), f"without {task}", *compared(rest)]


def by_pair(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each number of rows and pair: what both reach, and the differences."""
    for size in SIZES:
        for pair in rows.place.pairs:
            found = rows.both(size, pair)
            if not found:
                continue
            shadow, lora = ([run[at] for run in found.values()] for at in (0, 1))
            reached = [
                f"{np.mean([points(row) for row in of]):.1f}, {np.mean([lost(row) for row in of]):.4f}"
                for of in (lora, shadow)
            ]
            yield [str(size), f"{NAMES[pair[0]]} {pair[1]}", *reached, *compared({pair: found})[1:]]


def report(rows: Rows) -> str:
    """Return the whole report."""
    reached = ("LoRA: points, nats", "shadow: points, nats")
    heads = ("rows", "method", "rates", "dropout", "pairs", "nll", "points", "")
    said = [
        f"Trained parameters, shadow and LoRA: {refuse_unequal(rows.by_key.values())}",
        f"\nDifferent answers among the rows, on average: {refuse_other_rows(rows)}",
        f"\n## Settings from the first seed\n\n{table(heads, settings(rows))}",
        f"\n## Shadow minus LoRA\n\n{table(('rows', 'tasks', *DIFFERENCE), differences(rows))}",
        f"\n## By pair\n\n{table(('rows', 'pair', *reached, *DIFFERENCE[1:]), by_pair(rows))}",
        "\n## Failures\n",
        *failures(rows.all),
    ]
    return "\n".join(said)


if __name__ == "__main__":
    print(report(Rows(*rows_and_place(__doc__))))
