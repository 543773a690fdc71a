"""Which setting of each method the search of a study chooses on the validation split."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.extension import edge, searched
from shadowpeft.compare.records import Record
from shadowpeft.compare.study import Study
from shadowpeft.compare.trials import (
    Combination,
    Validation,
    is_untrained,
    ranked,
    second_run,
    validations,
)

NO_SETTING = Setting(0.0)  # there is nothing to search, or the search has not chosen
_ROUNDING = 1e-9  # 0.1 + 0.7 is not quite 0.4 + 0.4


@dataclass(frozen=True)
class Edge:
    """A search whose best trial is at the edge of the rates tried.

    Attributes:
        model: folder or hub id of the base.
        task: name of the task.
        method: name of the method.
        side: `lowest` or `highest`.
        learning_rate: the best one.
    """

    model: str
    task: str
    method: str
    side: Literal["lowest", "highest"]
    learning_rate: float


def choices(study: Study, records: Iterable[Record]) -> dict[Combination, Setting | None]:
    """Choose a setting for every model, task and method by the one-standard-error rule.

    Settings within `tie_standard_errors` of the best validation value count as equal. Of equals the lowest
    learning rate is chosen, then the lowest alpha, then the lowest rate of the backbone, then of the head,
    then the earlier trial. A trial that extends the grid is chosen only if its value is the best: below the
    grid a rate could always win a tie. With 0 the best value is chosen, and of equal values that of the
    earlier trial.

    Among several finalists the mean of both seeds counts. A trial without two values loses to any trial that
    has them; if no trial has them, the first seed decides.

    Returns:
        The setting; `None` if no trial has a value: the search is not complete, or every trial failed. If
        there is nothing to search (the base of a task that is answered without training), a learning rate of
        0.
    """
    records = list(records)
    values = validations(records)
    return {
        combination: _chosen(study, combination, cells, values)
        for combination, cells in searched(study, records).items()
    }


def _chosen(
    study: Study, combination: Combination, cells: Sequence[Cell], values: Mapping[str, Validation]
) -> Setting | None:
    if is_untrained(combination):
        return NO_SETTING
    best = _best(study, cells, values)
    if best is None:
        return None
    return best.setting


def edges(study: Study, records: Iterable[Record]) -> list[Edge]:
    """List the searches whose best trial is at the edge of the rates tried, where no more will be tried."""
    records = list(records)
    values, done = validations(records), {record["key"] for record in records}
    every = searched(study, records)
    waiting = {
        combination[:2] for combination, cells in every.items() if any(cell.key not in done for cell in cells)
    }
    found = []
    for combination, cells in every.items():
        means = {cell.key: mean for cell, mean in _means(study, cells, values).items()}
        side = edge(cells, means)
        if side and combination[:2] not in waiting:
            found.append(Edge(*combination, side, ranked(cells, means)[0].learning_rate))
    return found


def _best(study: Study, cells: Sequence[Cell], values: Mapping[str, Validation]) -> Cell | None:
    """Return the trial to choose among those of one combination; `None` if none has a value."""
    means = _means(study, cells, values)
    if not means:
        return None
    best = min(means.values())
    most = best.penalty + study.tie_standard_errors * _standard_error(best) + _ROUNDING
    equals = [cell for cell in cells if cell in means and means[cell].penalty <= most]
    if not study.tie_standard_errors:
        return equals[0]
    listed = cells[: study.trials]
    return min(
        (cell for cell in equals if cell in listed or means[cell].penalty == best.penalty), key=_caution
    )


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
