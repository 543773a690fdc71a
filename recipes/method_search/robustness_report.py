"""Compute every figure of a record on robustness from its rows.

    python recipes/method_search/robustness_report.py ROWS.jsonl ... [--place gpu]

Prints Markdown: the shadow beside LoRA at both defaults, what each rate of the grid reaches, the regret of
the default, and how many runs failed. Differences in nll are in nats an item, of gsm8k in nats a token, in
accuracy in points.

Raises:
    SystemExit: the shadow trained over 1 % more or fewer parameters than LoRA.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from head_rate_report import table
from paired_runs import (
    DIFFERENCE,
    NAMES,
    Row,
    Run,
    compared,
    failures,
    lost,
    mean_nats,
    points,
    refuse_unequal,
    results,
    spans_of,
)
from places import METHODS, Place, job, rows_and_place
from planning import Pair, key_of
from robustness import GRID_SEEDS, MORE_SEEDS

from shadowpeft.reporting.stats import average, paired
from shadowpeft.route.intervals import interval

# Body and head; `None` where the head has the body's.
Rates = tuple[float, float | None]


class Rows:
    """The rows of runs that ended.

    Attributes:
        all: the rows.
        place: where the runs were made.
        by_key: rows by run.
    """

    def __init__(self, rows: Sequence[Row], place: Place) -> None:
        self.all, self.place, self.by_key = rows, place, results(rows)

    def of(self, method: str, rates: Rates, pair: Pair, seed: int) -> Row | None:
        """Return the row of a run; `None` if it did not end."""
        body, head = rates
        return self.by_key.get(key_of(job(self.place, pair, method, body=body, head=head, seed=seed)))

    def default(self, method: str, pair: Pair, seed: int) -> Row | None:
        """Return the row of a default."""
        return self.of(method, (self.place.default[method], None), pair, seed)

    def tuned(self, method: str, pair: Pair, seed: int) -> Row | None:
        """Return the row of the rate that is best on the other seed of the grid; `None` if one is missing."""
        (other,) = (one for one in GRID_SEEDS if one != seed)
        grid = [(rate, self.of(method, (rate, None), pair, other)) for rate in self.place.grid[method]]
        if any(row is None for _, row in grid):
            return None
        best = min((lost(row), rate) for rate, row in grid if row)[1]
        return self.of(method, (best, None), pair, seed)

    def regret(self, method: str, pair: Pair) -> dict[int, Run]:
        """Return the tuned and the default's row from each seed of the grid that has both."""
        runs = (
            (seed, self.tuned(method, pair, seed), self.default(method, pair, seed)) for seed in GRID_SEEDS
        )
        return {seed: (tuned, plain) for seed, tuned, plain in runs if tuned and plain}


def has_failed(rows: Rows, row: Row) -> bool:
    """Return whether a run diverged or learnt nothing."""
    pair = row["job"]["model"], row["job"]["task"]
    if not lost(row) < math.inf:
        return True
    if pair in rows.place.maths:
        least = min(lost(one) for key, one in rows.by_key.items() if key[1:3] == pair)
        return lost(row) > 2 * least
    share = rows.place.commonest[pair[1]]
    return points(row) / 100 <= share + 2 * math.sqrt(share * (1 - share) / row["items"])


def settings(place: Place) -> dict[str, dict[str, Rates]]:
    """Return what is compared: each method's default, and its setting with a rate for the head."""
    compared_ones: dict[str, dict[str, Rates]] = {
        "defaults": {method: (rate, None) for method, rate in place.default.items()}
    }
    if any(body != head for body, head in place.tuned.values()):
        compared_ones["a rate for the head"] = dict(place.tuned)
    return compared_ones


def differences(rows: Rows) -> Iterable[list[str]]:
    """Yield the shadow minus LoRA at the defaults, with a rate for the head, and each tuned."""
    every = (*GRID_SEEDS, *MORE_SEEDS)
    for label, rates in settings(rows.place).items():
        for kind, pairs in (("classified", rows.place.pairs), ("gsm8k", rows.place.maths)):
            runs = {}
            for pair in pairs:
                both = {seed: [rows.of(one, rates[one], pair, seed) for one in METHODS] for seed in every}
                found = {seed: (two[1], two[0]) for seed, two in both.items() if two[0] and two[1]}
                if found:
                    runs[pair] = found
            if runs:
                yield [label, kind, *compared(runs)]
    for kind, pairs in (("classified", rows.place.pairs), ("gsm8k", rows.place.maths)):
        runs = {}
        for pair in pairs:
            both = {seed: [rows.tuned(one, pair, seed) for one in METHODS] for seed in GRID_SEEDS}
            found = {seed: (two[1], two[0]) for seed, two in both.items() if two[0] and two[1]}
            if found:
                runs[pair] = found
        if runs:
            yield ["each pair tuned", kind, *compared(runs)]


def grid(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each method and rate: points and nll by pair and on average, and failed runs."""
    pairs = (*rows.place.pairs, *rows.place.maths)
    for method in METHODS:
        for rate in sorted({*rows.place.grid[method], rows.place.default[method]}):
            of = {pair: [row for seed in GRID_SEEDS if (row := rows.of(method, (rate, None), pair, seed))]
                  for pair in pairs}  # fmt: skip
            every = [row for found in of.values() for row in found]
            if not every:
                continue
            classified = [of[pair] for pair in rows.place.pairs if of[pair]]
            label = f"{rate:g}" + (" (default)" if rate == rows.place.default[method] else "")
            yield [method, label, *(_reached(of[pair]) for pair in pairs), _mean_reached(classified),
                   f"{sum(has_failed(rows, row) for row in every)} of {len(every)}"]  # fmt: skip


def _reached(found: Sequence[Row]) -> str:
    if not found:
        return ""
    nats = f"{np.mean([lost(row) for row in found]):.4f}"
    share = np.mean([points(row) for row in found])
    return nats if math.isnan(share) else f"{share:.1f}, {nats}"


def _mean_reached(groups: Sequence[Sequence[Row]]) -> str:
    values = [[(points(row), lost(row)) for row in found] for found in groups]
    share, nats = np.mean([np.mean(of, axis=0) for of in values], axis=0)
    return f"{share:.1f}, {nats:.4f}"


def regrets(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each method and pair: tuned minus default; then over pairs, and the difference."""
    found = {method: {pair: run for pair in (*rows.place.pairs, *rows.place.maths)
                      if (run := rows.regret(method, pair))} for method in METHODS}  # fmt: skip
    for method, runs in found.items():
        for pair, run in runs.items():
            rates = ", ".join(f"{tuned['job']['learning_rate']:g}" for tuned, _ in run.values())
            yield [method, f"{NAMES[pair[0]]} {pair[1]}", rates, *compared({pair: run})[2:6]]
        classified = {pair: run for pair, run in runs.items() if pair in rows.place.pairs}
        if classified:
            yield [method, "all classified", "", *compared(classified)[2:6]]
    shared = [pair for pair in rows.place.pairs if all(pair in runs for runs in found.values())]
    if shared:
        yield ["shadow - lora", "all classified", "", *_difference_of_regrets(found, shared)]


def _difference_of_regrets(found: dict[str, dict[Pair, dict[int, Run]]], pairs: Sequence[Pair]) -> list[str]:
    cells, nats = [], []
    for pair in pairs:
        gained, lower = {}, {}
        for method in METHODS:
            run = found[method][pair]
            marks = ({seed: two[at]["correct"] for seed, two in run.items()} for at in (0, 1))
            gained[method] = paired(*marks)
            lower[method] = [lost(tuned) - lost(plain) for tuned, plain in run.values()]
        seeds = min(map(len, gained.values()))
        cells.append((pair[1], gained["shadow"][:seeds] - gained["lora"][:seeds]))
        nats.append([ours - theirs for ours, theirs in zip(lower["shadow"], lower["lora"], strict=False)])
    return [*spans_of(average(cells)), mean_nats(nats)]


def slack(rows: Rows) -> Iterable[list[str]]:
    """Yield what each method reaches on average over the grid, minus its default, and its failed runs."""
    for method in METHODS:
        share, nats, count, failed = [], [], 0, 0
        for pair in (*rows.place.pairs, *rows.place.maths):
            found = [row for rate in rows.place.grid[method] for seed in GRID_SEEDS
                     if (row := rows.of(method, (rate, None), pair, seed))]  # fmt: skip
            plain = [row for seed in GRID_SEEDS if (row := rows.default(method, pair, seed))]
            count, failed = count + len(found), failed + sum(has_failed(rows, row) for row in found)
            if pair in rows.place.pairs and found and plain:
                share.append(
                    np.mean([points(row) for row in found]) - np.mean([points(row) for row in plain])
                )
                kept = [lost(row) for row in found if lost(row) < math.inf]
                nats.append(np.mean(kept) - np.mean([lost(row) for row in plain]))
        if not count:
            continue
        low, high = interval(failed, count)
        yield [method, f"{np.mean(share):+.2f}", f"{np.mean(nats):+.4f}", f"{failed} of {count}",
               f"{100 * low:.1f} to {100 * high:.1f} %"]  # fmt: skip


def report(rows: Rows) -> str:
    """Return the whole report."""
    pairs = [f"{NAMES[model]} {task}" for model, task in (*rows.place.pairs, *rows.place.maths)]
    heads = {
        "Shadow minus LoRA": ("setting", "tasks", *DIFFERENCE),
        "The grid": ("method", "rate", *(f"{pair}: points, nats" for pair in pairs), "classified", "failed"),
        "Regret: tuned minus default": ("method", "pair", "tuned rates", *DIFFERENCE[2:6]),
        "Slack, and failed runs of the grid": (
            "method", "points, grid - default", "nats", "failed", "95 % of the share"
        ),
    }  # fmt: skip
    said = [f"Trained parameters, shadow and LoRA: {refuse_unequal(rows.by_key.values())}"]
    for title, make in zip(heads, (differences, grid, regrets, slack), strict=True):
        said.append(f"\n## {title}\n\n{table(heads[title], make(rows))}")
    return "\n".join([*said, "\n## Failures\n", *failures(rows.all)])


if __name__ == "__main__":
    print(report(Rows(*rows_and_place(__doc__))))
