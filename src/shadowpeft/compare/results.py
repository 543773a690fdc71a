"""What the records of a study say: scores, differences to LoRA, costs, and what is missing."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.method_result import (
    REFERENCE,
    MethodResult,
    differences_by_seed,
    pair,
    shares_seeds,
)
from shadowpeft.compare.records import Record
from shadowpeft.compare.search_space import METHODS
from shadowpeft.compare.study import Study
from shadowpeft.reporting import stats
from shadowpeft.reporting.stats import Difference, Estimate

# Their number of trainable parameters does not follow the budget, so they run at one rank.
_OF_NO_RANK = ("base", "full")
# The fields of a cost, with the factor to the unit of the table.
_COSTS = {
    "train_tokens_per_second": 1.0,
    "peak_gb": 1.0,
    "adapter_bytes": 1e-6,
    "ms_per_answer": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Average:
    """A method in one mode, averaged over the tasks, models and seeds that LoRA has, too, or else over all.

    Attributes:
        method: the method.
        mode: `attached` or `detached`.
        results: what is averaged.
        value: the mean score.
        reference: the mean score of LoRA there.
        difference: the difference of the two.
        forgetting: the mean rise of the loss on held-out text.
        forgetting_difference: the difference of that to LoRA's.
        size_ratio: trainable parameters over LoRA's.
    """

    method: str
    mode: str
    results: list[MethodResult]
    value: Estimate | None
    reference: Estimate | None
    difference: Difference | None
    forgetting: Estimate | None
    forgetting_difference: Estimate | None
    size_ratio: float | None


class Results:
    """The results of a study, finished or not.

    Of records of the same work the last counts. The main rank, at which methods are compared in full, is the
    first of the study's ranks that has results.

    Args:
        study: the study.
        records: its records so far.
        expected: the cells of the whole study.

    Raises:
        DataError: results that should be comparable are of different items.
    """

    def __init__(
        self, study: Study, records: Iterable[Record], expected: Sequence[Cell] | None = None
    ) -> None:
        self.study = study
        self.records = list(records)
        self._expected = expected
        good = [record for record in self.records if record.get("status") == "ok"]
        final = [record for record in good if record["stage"] == "final"]
        self.models = _order(study.names("model"), (record["model"] for record in self.records))
        self.tasks = _order(study.names("tasks"), (record["trained_on"] for record in self.records))
        self._methods = _order(METHODS, study.names("methods"), (record["method"] for record in self.records))
        self.ranks = sorted({record["rank"] for record in final if record["method"] not in _OF_NO_RANK})
        wanted = study.budgets
        self.rank = next((rank for rank in wanted if rank in self.ranks), (self.ranks or wanted)[0])
        self.final = self._collect(final)
        self.costs = self._collect([record for record in good if record["stage"] == "cost"])
        self.trials = [record for record in self.records if record["stage"] == "search"]
        self._done = {record["key"] for record in good}
        self._failed = {record["key"]: record for record in self.records if record["key"] not in self._done}
        self._paired = {
            result: pair(result, reference) for result in self.final if (reference := self.reference(result))
        }
        self._differences = {result: stats.difference(cell) for result, cell in self._paired.items()}

    def _collect(self, records: Sequence[Record]) -> list[MethodResult]:
        """Group records that differ in their seed alone."""
        groups: dict[tuple[str, str, str, str, str, int], dict[int, Record]] = {}
        for record in records:
            names = (record[name] for name in ("model", "trained_on", "task", "method", "mode"))
            model, trained_on, task, method, mode = names
            key = model, trained_on, task, method, mode, self._rank(method, record["rank"])
            groups.setdefault(key, {})[record["seed"]] = record
        results = [
            MethodResult(*key, records=tuple(group[seed] for seed in sorted(group)))
            for key, group in groups.items()
        ]
        tasks = _order(self.tasks, (result.task for result in results))

        def order(result: MethodResult) -> tuple[int, ...]:
            model, task, method = self.place(result.model, result.trained_on, result.method)
            measured_on, is_detached = tasks.index(result.task), int(result.mode == "detached")
            return model, task, measured_on, method, is_detached, result.rank

        return sorted(results, key=order)

    def select(
        self,
        model: str | None = None,
        task: str | None = None,
        rank: int | None = None,
        where: str | None = None,
    ) -> list[MethodResult]:
        """Return final results of a model and of the task trained on, `None` for any of them.

        They are those measured on the task trained on, or on its partner `where`.
        """
        return [
            result
            for result in self.final
            if model in (None, result.model)
            and task in (None, result.trained_on)
            and rank in (None, result.rank)
            and result.task == (where or result.trained_on)
        ]

    def place(self, model: str, task: str, method: str) -> tuple[int, int, int]:
        """Return the places of a model, a task trained on and a method in the order of the study."""
        return self.models.index(model), self.tasks.index(task), self._methods.index(method)

    def partners(self, model: str, task: str) -> list[str]:
        """Return the tasks that models trained on a task were also measured on."""
        return _order(
            result.task
            for result in self.final
            if (result.model, result.trained_on) == (model, task) and result.task != task
        )

    def reference(self, result: MethodResult) -> MethodResult | None:
        """Return the LoRA to compare a result with: of the same model, tasks and rank."""
        if result.method == REFERENCE:
            return None
        same = (result.model, result.trained_on, result.task, result.rank)
        candidates = (
            other
            for other in self.final
            if other.method == REFERENCE and (other.model, other.trained_on, other.task, other.rank) == same
        )
        return next((other for other in candidates if shares_seeds(result, other)), None)

    def difference(self, result: MethodResult) -> Difference | None:
        """Return a result's difference to LoRA; `None` if there is nothing to compare with."""
        return self._differences.get(result)

    def averages(self, without: str | None = None) -> list[Average]:
        """Average every method over the tasks and models at the main rank.

        Args:
            without: a task to leave out.
        """
        results = [result for result in self.select(rank=self.rank) if result.task != without]
        in_order = sorted(results, key=lambda result: (result.mode, self._methods.index(result.method)))
        names = _order(result.name for result in in_order)
        return [self._average([result for result in results if result.name == name]) for name in names]

    def _average(self, results: list[MethodResult]) -> Average:
        """Average over the cells and seeds that LoRA has, too; if it has none, over all there are."""
        pairs = [(result, self.reference(result)) for result in results if result in self._paired]
        compared = [(result, reference) for result, reference in pairs if reference is not None]
        if compared:
            results = [result.with_seeds_of(reference) for result, reference in compared]
        references = [reference.with_seeds_of(result) for result, reference in compared]
        return Average(
            method=results[0].method,
            mode=results[0].mode,
            results=results,
            value=stats.mean_of_means([result.values("value") for result in results]),
            reference=stats.mean_of_means([reference.values("value") for reference in references]),
            difference=self._mean_difference([result for result, _ in compared]),
            forgetting=stats.mean_of_means([result.values("forgetting") for result in results]),
            forgetting_difference=stats.mean_of_means(
                [differences_by_seed(result, reference, "forgetting") for result, reference in compared]
            ),
            size_ratio=self._mean_size_ratio([result for result, _ in compared] or results),
        )

    def _mean_difference(self, results: Sequence[MethodResult]) -> Difference | None:
        """Average differences; models that were measured on the same items share their draws of them."""
        if not results:
            return None
        return stats.average(
            [
                (result.records[0].get("items_digest") or result.task, self._paired[result])
                for result in results
            ]
        )

    def _mean_size_ratio(self, results: Sequence[MethodResult]) -> float | None:
        ratios = [ratio for result in results if (ratio := self.size_ratio(result)) is not None]
        if ratios:
            return sum(ratios) / len(ratios)
        return None

    def size_ratio(self, result: MethodResult) -> float | None:
        """Return a result's trainable parameters over LoRA's."""
        reference = result if result.method == REFERENCE else self.reference(result)
        own, other = result.mean("trainable"), reference and reference.mean("trainable")
        if own is not None and other:
            return own / other
        return None

    def cost(self, result: MethodResult) -> dict[str, float | None]:
        """Return what a result cost: as timed alone if it was, else as measured while the study ran.

        The key `alone` is 1 if it was timed alone.
        """
        alone = self._timed_alone(result)
        source = alone or result
        seconds = result.mean("train_seconds")
        if alone is not None:
            step_ms, steps = alone.mean("value"), result.mean("steps")
            seconds = None if step_ms is None or steps is None else step_ms * steps / 1000
        costs: dict[str, float | None] = {"alone": float(alone is not None), "train_seconds": seconds}
        for field, unit in _COSTS.items():
            value = source.mean(field)
            costs[field] = None if value is None else value * unit
        return costs

    def _timed_alone(self, result: MethodResult) -> MethodResult | None:
        same = (result.model, result.trained_on, result.method, result.mode, result.rank)
        for other in self.costs:
            if (other.model, other.trained_on, other.method, other.mode, other.rank) == same:
                return other
        return None

    def missing(self) -> list[tuple[str, str]]:
        """Return every cell without a result, with the reason: it failed, or it did not run.

        Cells that did not run are those expected; if no cells were given, every combination of the study's
        settings without a final record.
        """
        reasons = {
            key: ": ".join(filter(None, (record["status"], record.get("error"))))
            for key, record in self._failed.items()
        }
        if self._expected is None:
            planned = self._planned_without_record()
        else:
            planned = [cell.key for cell in self._expected if cell.key not in self._done]
        for key in planned:
            reasons.setdefault(key, "not run")
        return list(reasons.items())

    def lost(self) -> list[str]:
        """Return the final runs that failed: an average without runs that diverged flatters a method."""
        return [key for key, record in self._failed.items() if record["stage"] == "final"]

    def _rank(self, method: str, rank: int) -> int:
        if method in _OF_NO_RANK:
            return self.rank
        return rank

    def _planned_without_record(self) -> list[str]:
        final = [record for record in self.records if record["stage"] == "final"]
        known = {
            (*_place(record), self._rank(record["method"], record["rank"]), record["seed"])
            for record in final
        }
        return [
            f"final {model} {task} {method} rank={rank} seed={seed}"
            for model, task, method, rank, seed in self._planned()
            if (model, task, method, rank, seed) not in known
        ]

    def _planned(self) -> Iterable[tuple[str, str, str, int, int]]:
        """Yield model, task, method, rank and seed of every final cell; one seed of the base is enough."""
        names = [self.study.names(setting) for setting in ("model", "tasks", "methods")]
        for model, task, method in product(*names):
            ranks = [self.rank] if method in _OF_NO_RANK else self.study.budgets
            seeds = range(1 if method == "base" else self.study.seeds)
            for rank, seed in product(ranks, seeds):
                yield model, task, method, rank, seed


def _place(record: Record) -> tuple[str, str, str]:
    return record["model"], record["trained_on"], record["method"]


def _order(*groups: Iterable[str]) -> list[str]:
    """Return the names of all groups, each once, in the order in which they first occur."""
    return list(dict.fromkeys(name for group in groups for name in group))
