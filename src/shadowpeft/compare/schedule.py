"""Which cells a study has, which are next, and what its search chose: pure functions of the study and the rows so far."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product, zip_longest
from typing import Any

from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks import find

Row = dict[str, Any]
Place = tuple[str, str, str]  # model, task, method
_NO_SETTING = Setting(0.0)  # there is nothing to search, or the search has not chosen


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
        cells = [cell for cell in stage(study, chosen) if chosen[_place(cell)] is not None and cell.key not in done]
        if cells:
            return cells
    return []


def expected(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """List all cells of the study; those whose settings the search has not chosen, or could not, have a learning rate of 0.

    The finalists are those of `finalist_cells`, which may change until all trials have run.
    """
    chosen = choices(study, rows)
    return [*search_cells(study), *finalist_cells(study, rows), *final_cells(study, chosen), *cost_cells(study, chosen)]


def choices(study: Study, rows: Iterable[Row]) -> dict[Place, Setting | None]:
    """Give the setting with the best validation value, by model, task and method.

    Among several finalists the best mean over both seeds decides; one without two values loses to any that has them, and where none has
    them the first seed decides. Ties go to the earlier trial. `None` where no trial has a value: the search is not complete, or every
    trial failed. A method that has nothing to search (the base of a task that is answered without training) has a learning rate of 0.
    """
    found = _badness(rows)
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
    found, done = _badness(rows), {row["key"] for row in rows}
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
    return [(model, task, method) for method in study.names("methods") for model in study.names("model") for task in study.names("tasks")]


def _place(cell: Cell) -> Place:
    return cell.model, cell.task, cell.method


def _is_untrained(place: Place) -> bool:
    """Tell whether nothing is trained: the base has to learn a head where it classifies, and nothing elsewhere."""
    return place[2] == "base" and find(place[1]).kind != "classification"


def _trials(study: Study, place: Place) -> list[Cell]:
    if _is_untrained(place):
        return []
    return [Cell("search", *place, study.budgets[0], study.search_seed, *setting) for setting in study.candidates(place[2])]


def _chosen_cell(place: Place, study: Study, chosen: dict[Place, Setting | None]) -> Cell:
    return Cell("final", *place, study.budgets[0], 0, *(chosen[place] or _NO_SETTING))


def _again(trial: Cell) -> Cell:
    """Return a trial's second run."""
    return replace(trial, seed=trial.seed + 1)


def _best(study: Study, trials: Sequence[Cell], found: Mapping[str, float]) -> Cell | None:
    """Find the trial to choose among those of one place; `None` if none has a value."""
    ranked = _ranked(trials, found)
    twice = [cell for cell in trials if cell in ranked[: study.finalists] and _again(cell).key in found]
    if twice:
        # Of equals the first; rounded, as 0.1 + 0.7 is not quite 0.4 + 0.4.
        return min(twice, key=lambda cell: round(found[cell.key] + found[_again(cell).key], 9))
    return ranked[0] if ranked else None


def _ranked(trials: Sequence[Cell], found: Mapping[str, float]) -> list[Cell]:
    """Order the trials that have a value, the best first, equals as they are."""
    return sorted((cell for cell in trials if cell.key in found), key=lambda cell: found[cell.key])


def _badness(rows: Iterable[Row]) -> dict[str, float]:
    """Give the validation value of every run of the search that has a finite one, by its key and signed so that less is better."""
    return {
        row["key"]: row["value"] if row["metric"] == "loss" else -row["value"]
        for row in rows
        if row["stage"] == "search" and row["status"] == "ok" and row["mode"] == "attached" and row["task"] == row["trained_on"]
        if _is_number(row["value"])
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
