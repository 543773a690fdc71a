"""What the search of a study tries, and which setting of each method it chooses on the validation split."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.records import Record, number
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks import find

Combination = tuple[str, str, str]  # model, task, method
NO_SETTING = Setting(0.0)  # there is nothing to search, or the search has not chosen
_ROUNDING = 1e-9  # 0.1 + 0.7 is not quite 0.4 + 0.4


class Validation(NamedTuple):
    """A validation value of a trial.

    Attributes:
        penalty: the value with the sign that makes less better.
        answers: of how many answers the value is the share; 0 if it is a loss.
    """

    penalty: float
    answers: int


def combinations(study: Study) -> list[Combination]:
    """List what is compared.

    Neighbours differ in task, so that runs side by side do not all need the most memory at once.
    """
    return [
        (model, task, method)
        for method in study.names("methods")
        for model in study.names("model")
        for task in study.names("tasks")
    ]


def is_untrained(combination: Combination) -> bool:
    """Return whether nothing is trained: the base learns the head of a classifier, and nothing else."""
    return combination[2] == "base" and find(combination[1]).kind != "classification"


def trials(study: Study, combination: Combination) -> list[Cell]:
    """List the trials of a combination, in the order in which its settings are listed."""
    if is_untrained(combination):
        return []
    return [
        Cell("search", *combination, rank=study.budgets[0], seed=study.search_seed, **setting._asdict())
        for setting in study.candidates(combination[2])
    ]


def second_run(trial: Cell) -> Cell:
    """Return a trial's run from the second seed."""
    return replace(trial, seed=trial.seed + 1)


def choices(study: Study, records: Iterable[Record]) -> dict[Combination, Setting | None]:
    """Choose a setting for every model, task and method by the one-standard-error rule.

    Settings within `tie_standard_errors` of the best validation value count as equal. Of equals the lowest
    learning rate is chosen, then the lowest alpha, then the lowest rate of the backbone, then of the head,
    then the earlier trial. With 0 the best value is chosen, and of equal values that of the earlier trial.

    Among several finalists the mean of both seeds counts. A trial without two values loses to any trial that
    has them; if no trial has them, the first seed decides.

    Returns:
        The setting; `None` if no trial has a value: the search is not complete, or every trial failed. If
        there is nothing to search (the base of a task that is answered without training), a learning rate of
        0.
    """
    values = validations(records)
    return {combination: _chosen(study, combination, values) for combination in combinations(study)}


def _chosen(study: Study, combination: Combination, values: Mapping[str, Validation]) -> Setting | None:
    if is_untrained(combination):
        return NO_SETTING
    best = _best(study, trials(study, combination), values)
    if best is None:
        return None
    return best.setting


def _best(study: Study, cells: Sequence[Cell], values: Mapping[str, Validation]) -> Cell | None:
    """Return the trial to choose among those of one combination; `None` if none has a value."""
    means = _means(study, cells, values)
    if not means:
        return None
    best = min(means.values())
    most = best.penalty + study.tie_standard_errors * _standard_error(best) + _ROUNDING
    equals = [cell for cell in cells if cell in means and means[cell].penalty <= most]
    if study.tie_standard_errors:
        return min(equals, key=_caution)
    return equals[0]


def _means(study: Study, cells: Sequence[Cell], values: Mapping[str, Validation]) -> dict[Cell, Validation]:
    """Return the values to choose by: means over both seeds, or the first seed's if no trial has both."""
    candidates = ranked(cells, values)
    twice = [cell for cell in candidates[: study.finalists] if second_run(cell).key in values]
    if study.finalists == 1 or not twice:
        return {cell: values[cell.key] for cell in candidates}
    return {cell: _mean(values[cell.key], values[second_run(cell).key]) for cell in twice}


def _mean(first: Validation, second: Validation) -> Validation:
    return Validation((first.penalty + second.penalty) / 2, first.answers + second.answers)


def _standard_error(value: Validation) -> float:
    """Return the standard error of a share of right answers; 0 for a loss, whose spread is not recorded."""
    if not value.answers:
        return 0.0
    share = abs(value.penalty)
    return math.sqrt(share * (1 - share) / value.answers)


def _caution(cell: Cell) -> tuple[float, float, float, float]:
    """Return what equal trials are ordered by: runs diverge at high rates and strong injections."""
    return (
        cell.learning_rate,
        cell.alpha or 0.0,
        cell.backbone_learning_rate or cell.learning_rate,
        cell.head_learning_rate or cell.learning_rate,
    )


def ranked(cells: Sequence[Cell], values: Mapping[str, Validation]) -> list[Cell]:
    """Return the trials that have a value, the best first, and equals in their order."""
    return sorted((cell for cell in cells if cell.key in values), key=lambda cell: values[cell.key].penalty)


def validations(records: Iterable[Record]) -> dict[str, Validation]:
    """Return the validation value of every run of the search that has a finite one, by its key."""
    return {
        record["key"]: _validation(record)
        for record in records
        if record["stage"] == "search"
        and record["status"] == "ok"
        and record["mode"] == "attached"
        and record["task"] == record["trained_on"]
        and number(record, "value") is not None
    }


def _validation(record: Record) -> Validation:
    if record["metric"] == "loss":
        return Validation(record["value"], 0)
    return Validation(-record["value"], record.get("items") or 0)
