"""Compute every figure of the record on a frozen sibling as the shadow from its rows.

    python recipes/method_search/frozen_sibling_report.py ROWS.jsonl ... [--answers FOLDER]

Prints Markdown: the settings tried, each arm beside LoRA's best setting, the frozen sibling beside it and
beside a random shadow over items and seeds, and, if FOLDER has the answers that
`search.py --answers` kept, what mixing two models' answers gives. Differences in nll are in nats, in
accuracy and exact match in points, first minus second.

Raises:
    SystemExit: a frozen sibling trained over 1 % more or fewer parameters than LoRA.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from frozen_sibling import ARMS, CLASSIFIED, FIRST, GROUPS, TASKS, Measured, Setting
from head_rate_report import table
from mixed_answers import WEIGHTS, scores

from shadowpeft.reporting.stats import average, mean_interval, paired

TOLERANCE = 0.01
# Arms that are said to train as many parameters as LoRA at rank 16.
EQUAL = ("frozen", "strong", "unfitted")

Key = tuple[str, str, int]


class Rows:
    """The rows of runs that ended well, by setting, task and seed."""

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.all = list(rows)
        self.by_key: dict[Key, dict[str, Any]] = {}
        for row in self.all:
            made = row["job"]
            if row["status"] == "ok":
                self.by_key[made["name"], made["task"], made["seed"]] = row
        self.measured = Measured(self.all)

    def best(self, arm: str, task: str) -> Setting | None:
        """Return an arm's setting for a task: of an arm of several, the best of the task's group."""
        tasks = next(group for group in GROUPS if task in group)
        if arm == "longer":
            lora = self.measured.best("lora", tasks)
            return lora and lora._replace(arm=arm)
        if arm in ("lora", "frozen"):
            return self.measured.best(arm, tasks)
        names = {name for name, other, _ in self.by_key if other == task and name.split()[0] == arm}
        found = sorted(names)
        return Setting(arm, float(found[0].split()[1].split("/")[0])) if found else None

    def seeds(self, name: str, task: str) -> list[int]:
        """List the seeds from which a setting ran on a task."""
        return sorted(seed for known, other, seed in self.by_key if (known, other) == (name, task))


def lost(row: dict[str, Any]) -> float:
    """Return nats an item, of gsm8k nats a token."""
    metrics = row["metrics"]
    return float(metrics["loss"] if row["task"] == "gsm8k" else metrics["nll"])


def points(row: dict[str, Any]) -> float:
    """Return percent of the items answered right."""
    metrics = row["metrics"]
    return 100 * float(metrics["exact_match"] if row["task"] == "gsm8k" else metrics["accuracy"])


def refuse_unequal(rows: Rows) -> str:
    """Return how many parameters each arm trains; stop if an arm of equal size is not."""
    sizes: dict[str, int] = {}
    for (name, _, _), row in rows.by_key.items():
        sizes[name.split()[0]] = row["trainable"]
    for arm in EQUAL:
        if {arm, "lora"} <= sizes.keys() and abs(sizes[arm] / sizes["lora"] - 1) > TOLERANCE:
            raise SystemExit(f"{arm} trains {sizes[arm]:,} parameters, LoRA {sizes['lora']:,}")
    return ", ".join(f"{arm} {size:,}" for arm, size in sorted(sizes.items()))


def settings(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each setting from the first seed: loss and points by task."""
    names = sorted({name for name, _, seed in rows.by_key if seed == FIRST})
    for name in names:
        cells = []
        for task in TASKS:
            row = rows.by_key.get((name, task, FIRST))
            cells.append(f"{lost(row):.4f}, {points(row):.1f}" if row else "")
        yield [name, *cells]


def differences(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each arm and task: mean differences to LoRA's best setting over the seeds of both."""
    for arm in ARMS:
        for task in TASKS:
            ours, lora = rows.best(arm, task), rows.best("lora", task)
            if arm == "lora" or ours is None or lora is None:
                continue
            seeds = [one for one in rows.seeds(ours.name, task) if one in rows.seeds(lora.name, task)]
            if not seeds:
                continue
            pairs = [(rows.by_key[ours.name, task, one], rows.by_key[lora.name, task, one]) for one in seeds]
            nats = np.array([lost(first) - lost(second) for first, second in pairs])
            gained = np.array([points(first) - points(second) for first, second in pairs])
            times = np.mean([first["train_seconds"] / second["train_seconds"] for first, second in pairs])
            memory = [one["peak_gb"] / two["peak_gb"] for one, two in pairs if two["peak_gb"]]
            yield [
                f"{ours.name} - {lora.name}", task, " ".join(map(str, seeds)),
                f"{nats.mean():+.4f}{_spread(nats)}", f"{gained.mean():+.2f}{_spread(gained)}",
                f"{times:.2f}", f"{np.mean(memory):.2f}" if memory else "",
            ]  # fmt: skip


def over_items_and_seeds(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each comparison: points with both intervals, and in how many runs the loss is lower.

    Without the first seed, too, which chose the settings.
    """
    pairs = (("frozen", "lora"), ("random", "frozen"))
    for first, second in pairs:
        for tasks in (*GROUPS, *((task,) for task in CLASSIFIED)):
            for label, first_seed in (("all", FIRST), ("without the first", FIRST + 1)):
                line = _compared(rows, first, second, tasks, first_seed)
                if line:
                    yield [f"{first} - {second}", " ".join(tasks), label, *line]


def _compared(rows: Rows, first: str, second: str, tasks: Sequence[str], since: int) -> list[str] | None:
    cells, seeds, nats = [], [], []
    for task in tasks:
        settings = rows.best(first, task), rows.best(second, task)
        if None in settings:
            return None
        runs: list[dict[int, dict[str, Any]]] = [
            {seed: rows.by_key[one.name, task, seed] for seed in rows.seeds(one.name, task) if seed >= since}
            for one in settings
            if one is not None
        ]
        both = sorted(set(runs[0]) & set(runs[1]))
        if not both:
            return None
        marks = [{seed: run["correct"] for seed, run in of.items()} for of in runs]
        cells.append((task, paired(*marks)))
        seeds.append("/".join(map(str, both)))
        nats.append([lost(runs[0][seed]) - lost(runs[1][seed]) for seed in both])
    found = average(cells)
    spans = [f"{100 * span[0]:+.2f} to {100 * span[1]:+.2f}" if span else "" for span in
             (found.items, found.items_and_seeds)]  # fmt: skip
    every = [one for of in nats for one in of]
    lower = f"{sum(one < 0 for one in every)} of {len(every)}"
    means = np.mean([np.mean(of) for of in nats])
    alone = mean_interval(nats[0]) if len(tasks) == 1 else None
    width = f" ± {alone.margin:.4f}" if alone and alone.margin is not None else ""
    return [f"{100 * found.value:+.2f}", *spans, f"{means:+.4f}{width}", lower, ", ".join(seeds)]


def _spread(values: np.ndarray) -> str:
    """Write the standard error over seeds, if there are several."""
    return f" ± {values.std(ddof=1) / len(values) ** 0.5:.4g}" if len(values) > 1 else ""


def mixes(rows: Rows, folder: Path) -> Iterable[list[str]]:
    """Yield what mixing answers gains over LoRA's best setting alone, on the classifications.

    log p + w log q, with the w of each run that is best on one half of its items, measured on the other half,
    both ways.
    """
    pairs = (
        ("LoRA + LoRA on the sibling", "lora", "log0", "small", "log0"),
        ("frozen sibling + its detached answer", "frozen", "log0", "frozen", "log1"),
        ("frozen sibling + LoRA", "frozen", "log0", "lora", "log0"),
        ("frozen sibling alone", "frozen", "log0", "frozen", "log0"),
    )
    for label, first, its, second, other in pairs:
        # Axes of a run: weight, nats or right, item.
        gains, chosen = [], []
        for task in CLASSIFIED:
            arms = [rows.best(arm, task) for arm in (first, second, "lora")]
            if any(one is None for one in arms):
                continue
            names = [one.name for one in arms if one is not None]
            for seed in set.intersection(*(set(rows.seeds(name, task)) for name in names)):
                logs = [
                    _answers(rows, folder, (name, task, seed), key)
                    for name, key in zip(names, (its, other, "log0"), strict=True)
                ]
                if any(one is None for one in logs):
                    continue
                (one_NC, target_N), (two_NC, _), (lora_NC, _) = (log for log in logs if log is not None)
                tried = np.array([scores(one_NC + w * two_NC, target_N) for w in WEIGHTS])
                gained = []
                for half in (0, 1):
                    best = int(tried[:, 0, half::2].mean(-1).argmin())
                    chosen.append(WEIGHTS[best])
                    single = scores(lora_NC, target_N)[:, 1 - half :: 2]
                    gained.append((tried[best][:, 1 - half :: 2] - single).mean(-1))
                gains.append(np.mean(gained, 0))
        if gains:
            nats, right = np.mean(gains, 0)
            used = " ".join(f"{w:g}" for w in sorted(set(chosen)))
            yield [label, str(len(gains)), f"{nats:+.4f}", f"{100 * right:+.2f}", used]


def _answers(rows: Rows, folder: Path, key: Key, log: str) -> tuple[np.ndarray, np.ndarray] | None:
    path = folder / f"{rows.by_key[key]['name']}.npz"
    if not path.exists():
        return None
    with np.load(path) as file:
        if log not in file:
            return None
        return file[log].astype(np.float64), file["target"].astype(int)


def report(rows: Rows, answers: Path | None) -> str:
    """Return the report in Markdown."""
    failed = [row for row in rows.all if row["status"] != "ok"]
    parts = [f"{len(rows.by_key)} runs. Trained parameters: {refuse_unequal(rows)}."]
    parts += [
        f"Failed: {row['job']['name']} {row['task']} {row['job']['seed']}: {row['error'].split('. ')[0]}"
        for row in failed
    ]
    parts.append("Loss and points from the first seed\n\n" + table(("setting", *TASKS), settings(rows)))
    heads: Sequence[str] = ("first - second", "task", "seeds", "nats", "points", "time", "memory")
    parts.append("Beside LoRA's best setting\n\n" + table(heads, differences(rows)))
    heads = (
        "first - second", "tasks", "seeds", "points", "95 % over items", "95 % over items and seeds",
        "nats ± 95 % over seeds", "lower nats in", "seeds that both have",
    )  # fmt: skip
    parts.append("Over items and seeds\n\n" + table(heads, over_items_and_seeds(rows)))
    if answers is not None:
        heads = ("mixed", "runs", "nats, minus LoRA", "points, minus LoRA", "weights")
        parts.append("Mixed answers\n\n" + table(heads, mixes(rows, answers)))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="+", type=Path)
    parser.add_argument("--answers", type=Path)
    given = parser.parse_args()
    lines = [line for path in given.rows for line in path.read_text(encoding="utf-8").splitlines()]
    print(report(Rows(map(json.loads, lines)), given.answers))


if __name__ == "__main__":
    main()
