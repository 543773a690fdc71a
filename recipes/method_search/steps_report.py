"""Compute every figure of the record on the length of training from its rows.

    python recipes/method_search/steps_report.py ROWS.jsonl [--times TIMES.jsonl] [--earlier ROWS.jsonl ...]
        [--picture CURVES.png] [--short]

Prints Markdown: the settings tried, the differences at each length, the curves over steps, and, with the
times that `step_times.py` measured, the curves over seconds and the differences after equal seconds.
--earlier adds runs of 150 steps of other rows (results/quality/head_rate/rows.jsonl) where these have none,
and says how equal those are that both have. Differences are shadow minus LoRA: in nll in nats an item, of
gsm8k in nats a token, in accuracy in points.

Raises:
    SystemExit: the shadow trained over 1 % more or fewer parameters than LoRA.
"""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from head_rate_report import table
from measurements import LORA, SHADOW
from paired_runs import (
    DIFFERENCE,
    NAMES,
    Row,
    Run,
    compared,
    failures,
    lost,
    points,
    read_rows,
    refuse_unequal,
)
from planning import Key, Pair, key_of
from steps import (
    CLASSIFIED,
    FIRST,
    GEMMA,
    LENGTHS,
    MATHS,
    METHODS,
    MODELS,
    MORE,
    TASKS,
    Measured,
    Setting,
    tried,
)

from shadowpeft.reporting.stats import mean_of_means

CLASSIFIED_PAIRS = [(model, task) for model in MODELS for task in CLASSIFIED]
MATHS_PAIRS = [(model, MATHS) for model in MODELS]
ALL_PAIRS = CLASSIFIED_PAIRS + MATHS_PAIRS
SEEDS = (FIRST, *MORE)
# Which seeds a difference is over: those that all lengths have, those that chose nothing, all there are.
WHICH = {"both": SEEDS, "the second": MORE, "all": tuple(range(1000, 1006))}


class Rows:
    """The rows of runs that ended, by setting, pair and seed.

    Attributes:
        all: the rows.
        by_key: those that ended, and earlier ones where there are none.
        measured: what the planner makes of the rows.
        again: earlier rows of runs that these have, too, each with the later row.
    """

    def __init__(self, rows: Iterable[Row], earlier: Iterable[Row] = ()) -> None:
        self.all = list(rows)
        ended: dict[Key, Row] = {key_of(row["job"]): row for row in self.all if row["status"] == "ok"}
        before = {key_of(row["job"]): row for row in map(as_here, earlier) if row["status"] == "ok"}
        self.by_key = {**before, **ended}
        self.measured = Measured(self.all)
        self.again: list[Run] = [(before[key], row) for key, row in ended.items() if key in before]

    def seeds(self, setting: Setting, pair: Pair) -> dict[int, Row]:
        """Return a setting's rows on a pair by seed."""
        model, task = pair
        name = setting.name(task)
        return {key[3]: row for key, row in self.by_key.items() if key[:3] == (name, model, task)}

    def chosen(self, method: str, steps: int, pair: Pair) -> dict[int, Row]:
        """Return the rows by seed of the setting that was chosen for a pair; none before it was."""
        best = self.measured.best(method, steps, pair)
        return self.seeds(best, pair) if best else {}

    def both(self, steps: int, pair: Pair, seeds: Sequence[int] = SEEDS) -> dict[int, Run]:
        """Return the rows of the shadow and of LoRA from each of the seeds that both have."""
        shadow, lora = (self.chosen(method, steps, pair) for method in ("shadow", "lora"))
        return {seed: (shadow[seed], lora[seed]) for seed in seeds if seed in shadow and seed in lora}


def as_here(row: Row) -> Row:
    """Return a row of results/quality/head_rate, its name with its length, 150 steps; others unchanged."""
    made = row["job"]
    if "study" in made or made["name"] not in (LORA, SHADOW):
        return row
    return {**row, "job": {**made, "name": f"{made['name']} 150", "study": {"steps": 150}}}


def settings(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each setting from the first seed: mean nll and points, and the losses on gsm8k."""
    for steps in LENGTHS:
        for method in METHODS:
            factors = {one.factor for task in TASKS for one in tried(method, steps, task)}
            for factor in sorted(factors, reverse=True):
                one = Setting(method, steps, factor)
                found = [rows.seeds(one, pair).get(FIRST) for pair in CLASSIFIED_PAIRS]
                there = [row for row in found if row]
                cells = [""] * 2
                if there:
                    cells = [f"{np.mean([lost(row) for row in there]):.4f}"]
                    cells += [f"{np.mean([points(row) for row in there]):.2f}"]
                maths = [rows.seeds(one, pair).get(FIRST) for pair in MATHS_PAIRS]
                cells += [f"{lost(row):.4f}" if row else "" for row in maths]
                name = one.name(CLASSIFIED[0]), one.name(MATHS)
                yield [str(steps), method, f"{factor:g}", rates_of(name[0]), rates_of(name[1]),
                       str(len(there)), *cells]  # fmt: skip


def rates_of(name: str) -> str:
    """Return the rates in the name of a setting."""
    return name.split()[1]


def differences(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each length, kind of task and set of seeds."""
    for steps in LENGTHS:
        for label, pairs in (("classified", CLASSIFIED_PAIRS), (MATHS, MATHS_PAIRS)):
            said: list[list[str]] = []
            for which, seeds in WHICH.items():
                runs = {pair: rows.both(steps, pair, seeds) for pair in pairs}
                cells = compared({pair: found for pair, found in runs.items() if found})
                if cells and cells not in said:
                    said.append(cells)
                    yield [str(steps), label, which, *cells]


def by_task(rows: Rows, steps: int) -> Iterable[list[str]]:
    """Yield a line for each pair: what both reach, and the differences."""
    for pair in ALL_PAIRS:
        found = rows.both(steps, pair)
        if not found:
            continue
        shadow, lora = ([run[at] for run in found.values()] for at in (0, 1))
        reached = []
        for of in (lora, shadow):
            share = "" if pair[1] == MATHS else f"{np.mean([points(row) for row in of]):.1f}, "
            reached.append(f"{share}{np.mean([lost(row) for row in of]):.4f}")
        cells = compared({pair: found}) or []
        yield [f"{NAMES[pair[0]]} {pair[1]}", *reached, *cells[1:]]


def change(rows: Rows, first: int, second: int) -> Iterable[str]:
    """Yield how the differences of two lengths differ, over the pairs and seeds that have both."""
    for label, value in (("points", points), ("nats", lost)):
        groups = []
        for pair in CLASSIFIED_PAIRS:
            runs = rows.both(first, pair), rows.both(second, pair)
            gaps = [{seed: value(one) - value(two) for seed, (one, two) in of.items()} for of in runs]
            groups.append([gaps[1][seed] - gaps[0][seed] for seed in gaps[0] if seed in gaps[1]])
        filled = [of for of in groups if of]
        if not filled:
            continue
        width = mean_of_means(filled)
        margin = f" ± {width.margin:.4f}" if width and width.margin is not None else ""
        mean, runs_there = np.mean([np.mean(of) for of in filled]), sum(map(len, filled))
        over_pairs = np.std([np.mean(of) for of in filled], ddof=1) / len(filled) ** 0.5 if filled[1:] else 0
        yield (
            f"- {label}, difference at {second} minus difference at {first} steps: {mean:+.4f}{margin} "
            f"(95 % over seeds), s.e. over pairs {over_pairs:.4f}, {len(filled)} pairs, {runs_there} runs"
        )


def repeats(rows: Rows) -> Iterable[str]:
    """Yield how equal the runs are that earlier rows have, too."""
    if rows.again:
        gaps = np.array([(points(now) - points(then), lost(now) - lost(then)) for then, now in rows.again])
        mean, spread = gaps.mean(0), gaps.std(0, ddof=1)
        yield (
            f"- {len(gaps)} runs of 150 steps are in earlier rows, too: now minus then {mean[0]:+.2f} points "
            f"(standard deviation of a run {spread[0]:.2f}) and {mean[1]:+.4f} nats ({spread[1]:.4f})"
        )


class Times:
    """Seconds a step and memory of each method alone, by model, task and method."""

    def __init__(self, rows: Iterable[Row]) -> None:
        kept = [row for row in rows if row["status"] == "ok"]
        self.of = {(row["model"], row["task"], row["method"]): row for row in kept}

    def seconds(self, pair: Pair, method: str) -> float | None:
        """Return seconds a step."""
        row = self.of.get((*pair, method))
        return float(row["value"]) if row else None

    def usual(self, pair: Pair, method: str) -> float | None:
        """Return seconds a step; of a task that was not timed, the mean over those timed on its model.

        Steps of models as small as these wait for the host, so that tasks differ little.
        """
        timed = [float(row["value"]) for key, row in self.of.items() if key[::2] == (pair[0], method)]
        return self.seconds(pair, method) or (sum(timed) / len(timed) if timed else None)


def alone(times: Times) -> Iterable[list[str]]:
    """Yield a line for each pair and method timed alone."""
    for pair in ALL_PAIRS:
        lora = times.seconds(pair, "lora")
        for method in ("lora", "lora-chunked", "shadow"):
            seconds = times.seconds(pair, method)
            if seconds is None or lora is None:
                continue
            row = times.of[(*pair, method)]
            memory = f"{row['peak_gb']:.1f}" if row["peak_gb"] else ""
            hours = [f"{seconds * steps:.0f}" for steps in LENGTHS]
            yield [f"{NAMES[pair[0]]} {pair[1]}", method, f"{1000 * seconds:.1f}", f"{seconds / lora:.2f}",
                   memory, *hours]  # fmt: skip


Curve = dict[int, tuple[float, float]]


def curve(rows: Rows, method: str, pair: Pair) -> Curve:
    """Return mean loss and points of a method on a pair at each length that was run, over its seeds."""
    found = {}
    for steps in LENGTHS:
        there = rows.chosen(method, steps, pair)
        found[steps] = [there[seed] for seed in SEEDS if seed in there]
    return {
        steps: (float(np.mean([lost(row) for row in of])), float(np.mean([points(row) for row in of])))
        for steps, of in found.items()
        if of
    }


def curves(rows: Rows) -> Iterable[list[str]]:
    """Yield a line for each pair and method: points and loss at each length."""
    for pair in ALL_PAIRS:
        for method in METHODS:
            found = curve(rows, method, pair)
            cells = []
            for steps in LENGTHS:
                if steps not in found:
                    cells.append("")
                    continue
                nats, share = found[steps]
                cells.append(f"{nats:.4f}" if pair[1] == MATHS else f"{share:.1f}, {nats:.4f}")
            yield [f"{NAMES[pair[0]]} {pair[1]}", method, *cells]


def after(found: Curve, seconds_a_step: float, seconds: float, degree: int = 1) -> np.ndarray | None:
    """Interpolate loss and points along the logarithm of seconds; `None` beyond the lengths that were run.

    Args:
        found: the curve.
        seconds_a_step: of its method.
        seconds: where to read it.
        degree: 1 for a line between two lengths, 2 for a parabola through the nearest three.
    """
    steps = sorted(found)
    if len(steps) <= degree:
        return None
    places, here = np.log(np.array(steps) * seconds_a_step), math.log(seconds)
    # Rounding must not put a length that was run beyond itself.
    if not places[0] - 1e-9 <= here <= places[-1] + 1e-9:
        return None
    values = np.array([found[one] for one in steps])
    if degree == 1:
        return np.array([np.interp(here, places, of) for of in values.T])
    nearest = np.sort(np.argsort(np.abs(places - here))[:3])
    return np.array([np.polyval(np.polyfit(places[nearest], of, 2), here) for of in values[nearest].T])


def equal_seconds(rows: Rows, times: Times) -> Iterable[list[str]]:
    """Yield the shadow minus LoRA after equal seconds: those of one method at a length.

    The other method's curve is interpolated. On gsm8k LoRA's seconds are those of the faster loss.
    """
    for steps in LENGTHS:
        for whose in ("shadow", "lora"):
            for kind, pairs in (("classified", CLASSIFIED_PAIRS), ("maths", MATHS_PAIRS)):
                lines = [_gaps(rows, times, steps, whose, pairs, degree) for degree in (1, 2)]
                if len(lines[0]):
                    cells = [_means(of, at) for at in (1, 0) for of in lines]
                    blank = [""] * 2 if kind == "maths" else cells[:2]
                    yield [f"{whose}'s at {steps} steps", kind, str(len(lines[0])), *blank, *cells[2:]]


def _gaps(rows: Rows, times: Times, steps: int, whose: str, pairs: Sequence[Pair], degree: int) -> np.ndarray:
    """Return shadow minus LoRA in loss and points after one method's seconds, one row a pair."""
    gaps = []
    for pair in pairs:
        found = {method: curve(rows, method, pair) for method in METHODS}
        paces = {method: _pace(times, pair, method) for method in METHODS}
        if None in paces.values() or steps not in found[whose]:
            continue
        seconds = steps * (paces[whose] or 0)
        read = {}
        for method in METHODS:
            read[method] = after(found[method], paces[method] or 0, seconds, 1 if method == whose else degree)
        ours, theirs = read["shadow"], read["lora"]
        if ours is not None and theirs is not None:
            gaps.append(ours - theirs)
    return np.array(gaps)


def _means(gaps: np.ndarray, column: int) -> str:
    """Write the mean over pairs with its standard error."""
    of = gaps[:, column] if len(gaps) else np.array([])
    if not len(of):
        return ""
    error = f" ± {of.std(ddof=1) / len(of) ** 0.5:.{4 - 2 * column}f}" if len(of) > 1 else ""
    return f"{of.mean():+.{4 - 2 * column}f}{error}"


def _pace(times: Times, pair: Pair, method: str) -> float | None:
    if method == "lora" and pair[1] == MATHS:
        return times.usual(pair, "lora-chunked")
    return times.usual(pair, method)


def picture(rows: Rows, times: Times, path: Path) -> None:
    """Draw loss over steps (above) and over seconds alone (below), one panel a task."""
    from shadowpeft.compare.plot_style import look, plt, study_style

    with study_style():
        figure, grid = plt.subplots(2, len(TASKS), figsize=(3.1 * len(TASKS), 6.0), squeeze=False)
        for column, task in enumerate(TASKS):
            for model in MODELS:
                for method in METHODS:
                    found = curve(rows, method, (model, task))
                    steps, nats = sorted(found), [found[one][0] for one in sorted(found)]
                    drawn = {**look(method, "attached"), "linestyle": "-" if model == GEMMA else ":"}
                    drawn["label"] = f"{method}, {NAMES[model]}"
                    grid[0, column].plot(steps, nats, **drawn)
                    pace = _pace(times, (model, task), method)
                    if pace:
                        grid[1, column].plot([pace * one for one in steps], nats, **drawn)
            for row, label in ((0, "steps"), (1, "seconds, alone on an H200")):
                axes = grid[row, column]
                axes.set_xscale("log")
                ticks = LENGTHS if row == 0 else (10, 30, 100, 300)
                axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
                axes.minorticks_off()
                axes.set_xlabel(label)
                axes.set_title(task)
                if column == 0:
                    axes.set_ylabel("validation nats")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
        figure.savefig(path, format="png")


HEADS = {
    "Settings from the first seed": (
        "steps", "method", "factor", "rates", "rates on gsm8k", "pairs", "nll", "points", "gsm8k gemma",
        "gsm8k qwen",
    ),
    "Shadow minus LoRA": ("steps", "tasks", "which seeds", *DIFFERENCE),
    "Curves": ("pair", "method", *map(str, LENGTHS)),
}  # fmt: skip


def report(rows: Rows, times: Times, short: bool = False) -> str:
    """Return the whole report; `short` for the differences alone."""
    said = [f"Trained parameters, shadow and LoRA: {refuse_unequal(rows.by_key.values())}"]

    def add(title: str, heads: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
        said.append(f"\n## {title}\n\n{table(heads, lines)}")

    add("Settings from the first seed", HEADS["Settings from the first seed"], settings(rows))
    add("Shadow minus LoRA", HEADS["Shadow minus LoRA"], differences(rows))
    if short:
        return "\n".join(said)
    said.append("")
    said += [line for first in (50, 150) for line in change(rows, first, 600)]
    said += list(change(rows, 600, 2000))
    said += list(repeats(rows))
    for steps in LENGTHS:
        heads = ("pair", "LoRA: points, nats", "shadow: points, nats", *DIFFERENCE[1:])
        add(f"By pair, {steps} steps", heads, by_task(rows, steps))
    add("Curves", HEADS["Curves"], curves(rows))
    heads = ("pair", "method", "ms a step", "of LoRA's", "GB", *(f"s, {steps} steps" for steps in LENGTHS))
    add("Alone on a GPU", heads, alone(times))
    heads = (
        "after the seconds of", "tasks", "pairs", "points ± s.e. over pairs", "by a parabola",
        "nats ± s.e. over pairs", "by a parabola",
    )  # fmt: skip
    add("Shadow minus LoRA after equal seconds", heads, equal_seconds(rows, times))
    said.append("\n## Failures\n")
    return "\n".join([*said, *failures(rows.all)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=Path)
    parser.add_argument("--times", type=Path)
    parser.add_argument("--earlier", nargs="*", type=Path, default=[])
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    before = [row for path in given.earlier for row in read_rows(path)]
    rows, times = Rows(read_rows(given.rows), before), Times(read_rows(given.times))
    print(report(rows, times, given.short))
    if given.picture:
        picture(rows, times, given.picture)


if __name__ == "__main__":
    main()
