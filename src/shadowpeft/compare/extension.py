"""Trials beyond a grid: where one method does best at the edge of its rates, every method gets one more."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.records import Record
from shadowpeft.compare.study import Study
from shadowpeft.compare.trials import Combination, Validation, combinations, ranked, trials, validations

# The step of a grid that has one rate alone.
_STEP = 2.0


def searched(study: Study, records: Iterable[Record]) -> dict[Combination, list[Cell]]:
    """List all trials of every combination: those of its grid, then those that extend it, as far as known.

    Once all trials of a model and task have run, and the best of any method has the lowest or the highest
    rate of those tried, each method gets one more: at the edge one step beyond, else between the best rate
    and the better of its neighbours. So every method has as many trials. This is repeated `extensions` times
    at most. The first seed decides: finalists are chosen among what was tried.
    """
    records = list(records)
    values, done = validations(records), {record["key"] for record in records}
    found = {combination: trials(study, combination) for combination in combinations(study)}
    for place in dict.fromkeys(combination[:2] for combination in found):
        grids = [cells for combination, cells in found.items() if combination[:2] == place and cells]
        for _ in range(study.extensions):
            have_run = all(cell.key in done for cells in grids for cell in cells)
            if not have_run or not any(edge(cells, values) for cells in grids):
                break
            for cells in grids:
                cells.append(_further(cells, values))
    return found


def extended_places(study: Study, records: Iterable[Record]) -> set[tuple[str, str]]:
    """Return the models and tasks of which a trial beyond the grid has run."""
    grid = {cell.key for combination in combinations(study) for cell in trials(study, combination)}
    return {
        (record["model"], record["trained_on"])
        for record in records
        if record["stage"] == "search" and record["seed"] == study.search_seed and record["key"] not in grid
    }


def edge(cells: Sequence[Cell], values: Mapping[str, Validation]) -> Literal["lowest", "highest"] | None:
    """Say at which edge of the rates tried the best trials are.

    It is `None` if they are at neither, or at both, if there are none, or if one rate alone was tried.
    """
    rates, order = _rates(cells), ranked(cells, values)
    least = values[order[0].key].penalty if order else math.inf
    best = {cell.learning_rate for cell in order if values[cell.key].penalty == least}
    if len(rates) > 1 and best == {rates[0]}:
        return "lowest"
    if len(rates) > 1 and best == {rates[-1]}:
        return "highest"
    return None


def _rates(cells: Sequence[Cell]) -> list[float]:
    return sorted({cell.learning_rate for cell in cells})


def _further(cells: Sequence[Cell], values: Mapping[str, Validation]) -> Cell:
    """Return one more trial of a method: the best one's settings, but another learning rate."""
    tried, best = _rates(cells), (ranked(cells, values) or cells)[0]
    rate = _further_rate(cells, values)
    rounded = float(f"{rate:.3g}")
    return replace(best, learning_rate=rate if rounded in tried else rounded)


def _further_rate(cells: Sequence[Cell], values: Mapping[str, Validation]) -> float:
    rates, order, side = _rates(cells), ranked(cells, values), edge(cells, values)
    if len(rates) == 1:
        return rates[0] / _STEP
    if side == "lowest" or not order:  # where all failed, the rates were too high
        return rates[0] * rates[0] / rates[1]
    if side == "highest":
        return rates[-1] * rates[-1] / rates[-2]
    best = order[0].learning_rate
    at = rates.index(best)
    beside = [*rates[max(0, at - 1) : at], *rates[at + 1 : at + 2]]
    neighbour = next((cell.learning_rate for cell in order if cell.learning_rate in beside), beside[0])
    return math.sqrt(best * neighbour)
