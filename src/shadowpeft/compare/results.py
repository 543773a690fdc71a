"""The rows of a study put in order: what was measured, what it differs from LoRA, what it cost and what is missing."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import METHODS, Study
from shadowpeft.errors import DataError
from shadowpeft.reporting import stats
from shadowpeft.reporting.stats import Difference, Estimate

Row = Mapping[str, Any]
REFERENCE = "lora"
# Their number of trainable parameters does not follow the budget, so they are run at one rank.
_OF_NO_RANK = ("base", "full")
_COSTS = {
    "train_tokens_per_second": 1.0,
    "peak_gb": 1.0,
    "adapter_bytes": 1e-6,
    "ms_per_answer": 1.0,
}


@dataclass(frozen=True, eq=False)
class Line:
    """What a line of a table is about: one method in one mode, trained on one task and measured on one, over its seeds.

    A line is told from others by its identity, so that it can be a key.
    """

    model: str
    trained_on: str
    task: str
    method: str
    mode: str
    rank: int
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """Name the method and its mode; attached goes without saying."""
        return self.method if self.mode == "attached" else f"{self.method} {self.mode}"

    def values(self, field: str) -> list[float]:
        """Give the numbers of a field, one a seed that has it."""
        found = (read(row, field) for row in self.rows)
        return [value for value in found if value is not None]

    def estimate(self, field: str) -> Estimate | None:
        """Estimate the mean of a field over seeds."""
        return stats.mean_interval(self.values(field))

    def mean(self, field: str) -> float | None:
        """Give the mean of a field over seeds."""
        values = self.values(field)
        return sum(values) / len(values) if values else None

    @property
    def items(self) -> int:
        """Number of test items."""
        return int(self.mean("items") or 0)


def read(row: Row, field: str) -> float | None:
    """Read a number of a row, such as `value` or `metrics.f1`; `None` where there is none or it is not finite."""
    outer, _, inner = field.partition(".")
    value = (row.get(outer) or {}).get(inner) if inner else row.get(outer)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


class Results:
    """The rows of a study, however many of them there are yet.

    Of rows of equal work the last counts. The main rank, at which methods are compared in full, is the study's first one.
    """

    def __init__(self, study: Study, rows: Iterable[Row], expected: Sequence[Cell] | None = None) -> None:
        self.study = study
        self.rows = list(rows)
        self._expected = expected
        good = [row for row in self.rows if row.get("status") == "ok"]
        final = [row for row in good if row["stage"] == "final"]
        self.models = _order(study.names("model"), (row["model"] for row in self.rows))
        self.tasks = _order(study.names("tasks"), (row["trained_on"] for row in self.rows))
        self._methods = _order(METHODS, study.names("methods"), (row["method"] for row in self.rows))
        wanted = study.budgets
        self.ranks = sorted({row["rank"] for row in final if row["method"] not in _OF_NO_RANK})
        self.rank = next((rank for rank in wanted if rank in self.ranks), (self.ranks or wanted)[0])
        self.lines = self._collect(final)
        self.costs = self._collect([row for row in good if row["stage"] == "cost"])
        self.trials = [row for row in self.rows if row["stage"] == "search"]
        self._done = {row["key"] for row in good}
        self._failed = {row["key"]: row for row in self.rows if row["key"] not in self._done}
        self._paired = {
            line: _pair(line, reference) for line in self.lines if (reference := self.reference(line))
        }
        self._differences = {line: stats.difference(cell) for line, cell in self._paired.items()}

    def _collect(self, rows: Sequence[Row]) -> list[Line]:
        groups: dict[tuple[str, str, str, str, str, int], dict[int, Row]] = {}
        for row in rows:
            rank = self._rank(row["method"], row["rank"])
            key = (row["model"], row["trained_on"], row["task"], row["method"], row["mode"], rank)
            groups.setdefault(key, {})[row["seed"]] = row
        lines = [Line(*key, tuple(group[seed] for seed in sorted(group))) for key, group in groups.items()]
        tasks = _order(self.tasks, (line.task for line in lines))

        def order(line: Line) -> tuple[int, ...]:
            model, task, method = self.place(line.model, line.trained_on, line.method)
            return model, task, tasks.index(line.task), method, int(line.mode == "detached"), line.rank

        return sorted(lines, key=order)

    def select(
        self,
        model: str | None = None,
        task: str | None = None,
        rank: int | None = None,
        where: str | None = None,
    ) -> list[Line]:
        """Select final lines of a model and of the task trained on (`None` for any), measured on that task or on the partner `where`."""
        return [
            line
            for line in self.lines
            if model in (None, line.model)
            and task in (None, line.trained_on)
            and rank in (None, line.rank)
            and line.task == (where or line.trained_on)
        ]

    def place(self, model: str, task: str, method: str) -> tuple[int, int, int]:
        """Give the place of a model, a task trained on and a method in the order of the study."""
        return self.models.index(model), self.tasks.index(task), self._methods.index(method)

    def partners(self, model: str, task: str) -> list[str]:
        """Name the tasks that models trained on a task were also measured on."""
        return _order(
            line.task
            for line in self.lines
            if (line.model, line.trained_on) == (model, task) and line.task != task
        )

    def reference(self, line: Line) -> Line | None:
        """Find the LoRA to compare a line with: same model, tasks and rank."""
        if line.method == REFERENCE:
            return None
        same = (line.model, line.trained_on, line.task, line.rank)
        found = (
            other
            for other in self.lines
            if other.method == REFERENCE and (other.model, other.trained_on, other.task, other.rank) == same
        )
        return next((other for other in found if _shared_seeds(line, other)), None)

    def difference(self, line: Line) -> Difference | None:
        """Give a line's difference to LoRA; `None` where there is nothing to compare."""
        return self._differences.get(line)

    def averages(self) -> list["Average"]:
        """Average every method over the tasks and models at the main rank."""
        lines = self.select(rank=self.rank)
        names = _order(
            line.name
            for line in sorted(lines, key=lambda line: (line.mode, self._methods.index(line.method)))
        )
        return [self._average([line for line in lines if line.name == name]) for name in names]

    def _average(self, lines: list[Line]) -> "Average":
        """Average over the cells and seeds that LoRA has, too, where it has any; else over all there are."""
        pairs = [
            (line, reference)
            for line in lines
            if line in self._paired and (reference := self.reference(line))
        ]
        shared = [
            (_with_seeds_of(line, reference), _with_seeds_of(reference, line)) for line, reference in pairs
        ]
        averaged = [own for own, _ in shared] or lines
        cells = [(line.rows[0].get("items_digest") or line.task, self._paired[line]) for line, _ in pairs]
        ratios = [
            ratio
            for line in [line for line, _ in pairs] or lines
            if (ratio := self.size_ratio(line)) is not None
        ]
        return Average(
            lines[0].method,
            lines[0].mode,
            averaged,
            stats.mean_of_means([line.values("value") for line in averaged]),
            stats.mean_of_means([reference.values("value") for _, reference in shared]),
            stats.average(cells) if cells else None,
            stats.mean_of_means([line.values("forgetting") for line in averaged]),
            stats.mean_of_means([_by_seed(line, reference, "forgetting") for line, reference in pairs]),
            sum(ratios) / len(ratios) if ratios else None,
        )

    def size_ratio(self, line: Line) -> float | None:
        """Give a line's trainable parameters over LoRA's."""
        reference = line if line.method == REFERENCE else self.reference(line)
        own, other = line.mean("trainable"), reference and reference.mean("trainable")
        return own / other if own is not None and other else None

    def cost(self, line: Line) -> dict[str, float | None]:
        """Give what a line cost: as timed alone if it was, else as measured while the study ran.

        The key `alone` is 1 where it was timed alone.
        """
        same = (line.model, line.trained_on, line.method, line.mode, line.rank)
        alone = [
            other
            for other in self.costs
            if (other.model, other.trained_on, other.method, other.mode, other.rank) == same
        ]
        source = alone[0] if alone else line
        found: dict[str, float | None] = {
            "alone": float(bool(alone)),
            "train_seconds": line.mean("train_seconds"),
        }
        if alone:
            step, steps = source.mean("value"), line.mean("steps")
            found["train_seconds"] = None if step is None or steps is None else step * steps / 1000
        for field, unit in _COSTS.items():
            value = source.mean(field)
            found[field] = None if value is None else value * unit
        return found

    def missing(self) -> list[tuple[str, str]]:
        """Name every cell without a result and say why: it failed, or it was not run.

        Cells not run are those expected; where no cells were given, every combination of the study's settings without a final row.
        """
        names = {
            key: ": ".join(filter(None, (row["status"], row.get("error"))))
            for key, row in self._failed.items()
        }
        if self._expected is not None:
            return list(
                (
                    names
                    | {
                        cell.key: "not run"
                        for cell in self._expected
                        if cell.key not in self._done | set(names)
                    }
                ).items()
            )
        final = [row for row in self.rows if row["stage"] == "final"]
        known = {
            (
                row["model"],
                row["trained_on"],
                row["method"],
                self._rank(row["method"], row["rank"]),
                row["seed"],
            )
            for row in final
        }
        for model, task, method, rank, seed in self._planned():
            if (model, task, method, rank, seed) not in known:
                names[f"final {model} {task} {method} rank={rank} seed={seed}"] = "not run"
        return list(names.items())

    def lost(self) -> list[str]:
        """Name the final runs that failed: divergence is an outcome, so an average without them flatters their method."""
        return [key for key, row in self._failed.items() if row["stage"] == "final"]

    def _rank(self, method: str, rank: int) -> int:
        return self.rank if method in _OF_NO_RANK else rank

    def _planned(self) -> Iterable[tuple[str, str, str, int, int]]:
        """Give the model, task, method, rank and seed of every final cell of the study; of the base, which may need no more, one seed."""
        for model, task, method in itertools.product(
            *(self.study.names(setting) for setting in ("model", "tasks", "methods"))
        ):
            for rank in [self.rank] if method in _OF_NO_RANK else self.study.budgets:
                for seed in range(1 if method == "base" else self.study.seeds):
                    yield model, task, method, rank, seed


# What folders of models are called whatever is in them.
_SAYS_NOTHING = ("model", "base", "checkpoint", "final", "merged", "output")


@dataclass(frozen=True)
class Average:
    """A method in one mode, averaged over those tasks, models and seeds that LoRA has, too; over all of them where it has none."""

    method: str
    mode: str
    lines: list[Line]
    value: Estimate | None
    reference: Estimate | None
    difference: Difference | None
    forgetting: Estimate | None
    forgetting_difference: Estimate | None
    size_ratio: float | None


def short(names: Sequence[str]) -> Callable[[str], str]:
    """Return what shortens models to as few last parts of their names as tell them apart, of a folder that is just a `model` to two."""
    for count in range(1, 1 + max((len(PurePath(name).parts) for name in names), default=0)):
        last = {name: _last_parts(name, count) for name in names}
        if len(set(last.values())) == len(last):
            return lambda name: last.get(name, name)
    return lambda name: name


def _last_parts(name: str, count: int) -> str:
    path = PurePath(name)
    return str(PurePath(*path.parts[-max(count, 1 + (path.name in _SAYS_NOTHING)) :])) if path.name else name


def _order(*groups: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))


def _fixed(line: Line) -> bool:
    """Whether a line's model is the untuned base, which is the same for every seed."""
    return line.method == "base" and len(line.rows) == 1 and not read(line.rows[0], "steps")


def _shared_seeds(line: Line, reference: Line) -> bool:
    own, other = _marks(line), _marks(reference)
    return bool(own and other) if _fixed(line) else bool(set(own) & set(other))


def _with_seeds_of(line: Line, other: Line) -> Line:
    """Leave out the seeds that the other line lacks; the untuned base has none to share."""
    if _fixed(line) or _fixed(other):
        return line
    seeds = _marks(other)
    return replace(line, rows=tuple(row for row in line.rows if row["seed"] in seeds))


def _marks(line: Line) -> dict[int, str]:
    return {row["seed"]: row["correct"] for row in line.rows if row.get("correct")}


def _pair(line: Line, reference: Line) -> Any:
    """Pair a line with LoRA's."""
    digests = {row["items_digest"] for row in (*line.rows, *reference.rows) if row.get("items_digest")}
    where = f"{line.name} and {reference.name}, {line.model} on {line.task}"
    if len(digests) > 1:
        raise DataError(
            f"{where}: expected the same items in the same order, got different ones; measure both on the same split"
        )
    own, other = _marks(line), _marks(reference)
    if _fixed(line):
        own = {seed: marks for marks in own.values() for seed in other}
    try:
        return stats.paired(own, other)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _by_seed(line: Line, reference: Line, field: str) -> list[float]:
    """Give the differences of a field for the seeds that both lines have."""
    other = {row["seed"]: read(row, field) for row in reference.rows}
    own = (
        {seed: read(line.rows[0], field) for seed in other}
        if _fixed(line)
        else {row["seed"]: read(row, field) for row in line.rows}
    )
    pairs = ((own[seed], other.get(seed)) for seed in own)
    return [a - b for a, b in pairs if a is not None and b is not None]
