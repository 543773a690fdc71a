"""Which cells a study has, which are next, and what its search chose: pure functions of the study and the rows so far."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product, zip_longest
from typing import Any

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks import find

Row = dict[str, Any]
Place = tuple[str, str, str]  # model, task, method
Choice = tuple[float, float | None]  # learning rate, alpha


def ready(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """List the cells that can run now: of the first unfinished stage those without a row; empty when the study is complete.

    The final cells wait for the whole search, so that the test split is read when nothing is left to be chosen on it.
    """
    done = {row["key"] for row in rows}
    search = [cell for cell in search_cells(study) if cell.key not in done]
    if search:
        return search
    chosen = choices(study, rows)
    for stage in (final_cells, cost_cells):
        cells = [cell for cell in stage(study, chosen) if chosen[_place(cell)] is not None and cell.key not in done]
        if cells:
            return cells
    return []


def expected(study: Study, rows: Sequence[Row]) -> list[Cell]:
    """List all cells of the study; those whose settings the search has not chosen, or could not, have a learning rate of 0."""
    chosen = choices(study, rows)
    return [*search_cells(study), *final_cells(study, chosen), *cost_cells(study, chosen)]


def choices(study: Study, rows: Iterable[Row]) -> dict[Place, Choice | None]:
    """Give the learning rate and alpha with the best validation value, by model, task and method.

    Ties go to the earlier trial. `None` where no trial has a value: the search is not complete, or every trial failed. A method that has
    nothing to search (the base of a task that is answered without training) has a learning rate of 0.
    """
    found = {
        row["key"]: row
        for row in rows
        if row["stage"] == "search" and row["status"] == "ok" and row["mode"] == "attached" and row["task"] == row["trained_on"]
    }
    chosen: dict[Place, Choice | None] = {}
    for place in _places(study):
        trials = _trials(study, place)
        measured = [(cell, found[cell.key]) for cell in trials if cell.key in found and _is_number(found[cell.key]["value"])]
        best = min(measured, key=lambda pair: _badness(pair[1]), default=None)  # of equals the first
        chosen[place] = (0.0, None) if not trials else None if best is None else (best[0].learning_rate, best[0].alpha)
    return chosen


def search_cells(study: Study) -> list[Cell]:
    """List the trials: one seed, the first rank, every method equally many; the first trial of each comes first."""
    rounds = zip_longest(*(_trials(study, place) for place in _places(study)))
    return [cell for trials in rounds for cell in trials if cell is not None]


def final_cells(study: Study, chosen: dict[Place, Choice | None]) -> list[Cell]:
    """List the runs that are reported: every rank and seed, where these make a difference; the first seed of each comes first."""
    cells = []
    for rank, seed in product(study.budgets, range(study.seeds)):
        for place in _places(study):
            if (seed and _is_untrained(place)) or (rank != study.budgets[0] and place[2] in ("base", "full")):
                continue
            cells.append(replace(_chosen_cell(place, study, chosen), rank=rank, seed=seed))
    return cells


def cost_cells(study: Study, chosen: dict[Place, Choice | None]) -> list[Cell]:
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
    return [Cell("search", *place, study.budgets[0], study.search_seed, rate, alpha) for rate, alpha in study.candidates(place[2])]


def _chosen_cell(place: Place, study: Study, chosen: dict[Place, Choice | None]) -> Cell:
    rate, alpha = chosen[place] or (0.0, None)
    return Cell("final", *place, study.budgets[0], 0, rate, alpha)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _badness(row: Row) -> float:
    return row["value"] if row["metric"] == "loss" else -row["value"]
