"""Which cells a study has, which are next, and what its search chose: pure functions of the study and the rows so far."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product, zip_longest
from typing import Any, NamedTuple

from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks import find

Row = dict[str, Any]
Place = tuple[str, str, str]  # model, task, method
_NO_SETTING = Setting(0.0)  # there is nothing to search, or the search has not chosen
_ROUNDING = 1e-9  # 0.1 + 0.7 is not quite 0.4 + 0.4


class _Value(NamedTuple):
    """A validation value: signed so that less is better, and of how many answers it is the share (0 where it is no share)."""

    badness: float
    answers: int


def ready(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """List the cells that can run now: of the first unfinished stage those without a row; empty when the study is complete.

    The finalists' second runs wait for all trials, and the final cells for the whole search, so that the test split is read when nothing
    is left to be chosen on it.
    """
    done = {row["key"] for row in rows}
    for search in (search_cells(study), finalist_cells(study, rows)):
        cells = [cell for cell in search if cell.key not in done]
        if cells:
            return cells
    chosen = choices(study, rows)
    for stage in (final_cells, cost_cells):
        cells = [
            cell for cell in stage(study, chosen) if chosen[_place(cell)] is not None and cell.key not in done
        ]
        if cells:
            return cells
    return []


def expected(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """List all cells of the study; those whose settings the search has not chosen, or could not, have a learning rate of 0.

    The finalists are those of `finalist_cells`, which may change until all trials have run.
    """
    chosen = choices(study, rows)
    return [
        *search_cells(study),
        *finalist_cells(study, rows),
        *final_cells(study, chosen),
        *cost_cells(study, chosen),
    ]


def choices(study: Study, rows: Iterable[Row]) -> dict[Place, Setting | None]:
    """Give the setting that the search chose, by model, task and method: by the one-standard-error rule.

    Settings within `tie_standard_errors` of the best validation value are equal, and of equals the lowest learning rate is chosen, then
    the lowest alpha, then the lowest rate of the backbone, then the earlier trial. With 0 the best value is chosen, of equal ones the
    earlier trial's.

    Among several finalists it is the mean of both seeds that counts; one without two values loses to any that has them, and where none
    has them the first seed decides. `None` where no trial has a value: the search is not complete, or every trial failed. A method that
    has nothing to search (the base of a task that is answered without training) has a learning rate of 0.
    """
    found = _values(rows)
    chosen: dict[Place, Setting | None] = {}
    for place in _places(study):
        trials = _trials(study, place)
        best = _best(study, trials, found)
        chosen[place] = _NO_SETTING if not trials else None if best is None else best.setting
    return chosen


def search_cells(study: Study) -> list[Cell]:
    """List the trials: one seed, the first rank, every method equally many; the first trial of each comes first."""
    rounds = zip_longest(*(_trials(study, place) for place in _places(study)))
    return [cell for trials in rounds for cell in trials if cell is not None]


def finalist_cells(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """List the second runs of each method's best trials, from the next seed; the best of each comes first.

    Until all trials have run these are the best so far, with trials that have no row yet to make up the number. There are fewer where
    trials failed, and none where the search is of one seed.
    """
    if study.finalists == 1:
        return []
    found, done = _values(rows), {row["key"] for row in rows}
    finalists = []
    for place in _places(study):
        trials = _trials(study, place)
        waiting = [cell for cell in trials if cell.key not in done]
        finalists.append([*_ranked(trials, found), *waiting][: study.finalists])
    return [_again(cell) for cells in zip_longest(*finalists) for cell in cells if cell is not None]


def final_cells(study: Study, chosen: dict[Place, Setting | None]) -> list[Cell]:
    """List the runs that are reported: every rank and seed, where these make a difference; the first seed of each comes first."""
    cells = []
    for rank, seed in product(study.budgets, range(study.seeds)):
        for place in _places(study):
            if (seed and _is_untrained(place)) or (rank != study.budgets[0] and place[2] in ("base", "full")):
                continue
            cells.append(replace(_chosen_cell(place, study, chosen), rank=rank, seed=seed))
    return cells


def cost_cells(study: Study, chosen: dict[Place, Setting | None]) -> list[Cell]:
    """List the runs whose times are measured alone: one per model, task and method."""
    return [replace(_chosen_cell(place, study, chosen), stage="cost") for place in _places(study)]


def _places(study: Study) -> list[Place]:
    """List what is compared; neighbours differ in task, so that runs side by side do not all need the most memory at once."""
    return [
        (model, task, method)
        for method in study.names("methods")
        for model in study.names("model")
        for task in study.names("tasks")
    ]


def _place(cell: Cell) -> Place:
    return cell.model, cell.task, cell.method


def _is_untrained(place: Place) -> bool:
    """Tell whether nothing is trained: the base has to learn a head where it classifies, and nothing elsewhere."""
    return place[2] == "base" and find(place[1]).kind != "classification"


def _trials(study: Study, place: Place) -> list[Cell]:
    if _is_untrained(place):
        return []
    return [
        Cell("search", *place, study.budgets[0], study.search_seed, *setting)
        for setting in study.candidates(place[2])
    ]


def _chosen_cell(place: Place, study: Study, chosen: dict[Place, Setting | None]) -> Cell:
    return Cell("final", *place, study.budgets[0], 0, *(chosen[place] or _NO_SETTING))


def _again(trial: Cell) -> Cell:
    """Return a trial's second run."""
    return replace(trial, seed=trial.seed + 1)


def _best(study: Study, trials: Sequence[Cell], found: Mapping[str, _Value]) -> Cell | None:
    """Find the trial to choose among those of one place; `None` if none has a value."""
    values = _means(study, trials, found)
    if not values:
        return None
    best = min(values.values())
    most = best.badness + study.tie_standard_errors * _standard_error(best) + _ROUNDING
    equals = [cell for cell in trials if cell in values and values[cell].badness <= most]
    return min(equals, key=_caution) if study.tie_standard_errors else equals[0]


def _means(study: Study, trials: Sequence[Cell], found: Mapping[str, _Value]) -> dict[Cell, _Value]:
    """Give what the trials of one place are chosen by: the mean of those that have both seeds; the first seed where none has them."""
    ranked = _ranked(trials, found)
    twice = [cell for cell in ranked[: study.finalists] if _again(cell).key in found]
    if study.finalists == 1 or not twice:
        return {cell: found[cell.key] for cell in ranked}
    return {cell: _mean(found[cell.key], found[_again(cell).key]) for cell in twice}


def _mean(first: _Value, second: _Value) -> _Value:
    return _Value((first.badness + second.badness) / 2, first.answers + second.answers)


def _standard_error(value: _Value) -> float:
    """Give the standard error of a share of right answers; of a loss the rows hold no spread, so that it is 0."""
    share = abs(value.badness)
    return math.sqrt(share * (1 - share) / value.answers) if value.answers else 0.0


def _caution(cell: Cell) -> tuple[float, float, float]:
    """Order equal trials: runs diverge at high rates and strong injections."""
    return cell.learning_rate, cell.alpha or 0.0, cell.backbone_learning_rate or cell.learning_rate


def _ranked(trials: Sequence[Cell], found: Mapping[str, _Value]) -> list[Cell]:
    """Order the trials that have a value, the best first, equals as they are."""
    return sorted((cell for cell in trials if cell.key in found), key=lambda cell: found[cell.key].badness)


def _values(rows: Iterable[Row]) -> dict[str, _Value]:
    """Give the validation value of every run of the search that has a finite one, by its key."""
    return {
        row["key"]: _Value(row["value"], 0)
        if row["metric"] == "loss"
        else _Value(-row["value"], row.get("items") or 0)
        for row in rows
        if row["stage"] == "search"
        and row["status"] == "ok"
        and row["mode"] == "attached"
        and row["task"] == row["trained_on"]
        if _is_number(row["value"])
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
