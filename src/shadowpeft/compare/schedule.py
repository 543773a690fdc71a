"""Which cells a study has, and which are next: pure functions of the study and its records so far."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product, zip_longest

from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.choice import NO_SETTING, choices
from shadowpeft.compare.extension import searched
from shadowpeft.compare.records import Record
from shadowpeft.compare.study import Study
from shadowpeft.compare.trials import (
    Combination,
    combinations,
    is_untrained,
    ranked,
    second_run,
    validations,
)

Choices = dict[Combination, Setting | None]


def ready(study: Study, records: Sequence[Record]) -> list[Cell]:
    """List the cells that can run now: of the first unfinished stage those without a record.

    The finalists' second runs wait for all trials, and the final cells for the whole search, so that the test
    split is read when nothing is left to be chosen on it. The list is empty when the study is complete.
    """
    done = {record["key"] for record in records}
    for search in (search_cells(study, records), finalist_cells(study, records)):
        cells = [cell for cell in search if cell.key not in done]
        if cells:
            return cells
    chosen = choices(study, records)
    stages: tuple[Callable[[Study, Choices], list[Cell]], ...] = (final_cells, cost_cells)
    for stage in stages:
        possible = [cell for cell in stage(study, chosen) if chosen[_combination(cell)] is not None]
        cells = [cell for cell in possible if cell.key not in done]
        if cells:
            return cells
    return []


def expected(study: Study, records: Sequence[Record]) -> list[Cell]:
    """List all cells of the study; a cell whose setting the search has not chosen has a learning rate of 0.

    The trials and the finalists may become others until all trials have run.
    """
    chosen = choices(study, records)
    return [
        *search_cells(study, records),
        *finalist_cells(study, records),
        *final_cells(study, chosen),
        *cost_cells(study, chosen),
    ]


def search_cells(study: Study, records: Sequence[Record]) -> list[Cell]:
    """List the trials: one seed, the first rank, every method equally many; first trials come first.

    There may be more once these have run: see `extension.searched`.
    """
    return _in_turn(list(searched(study, records).values()))


def finalist_cells(study: Study, records: Sequence[Record]) -> list[Cell]:
    """List the second runs of each method's best trials, from the next seed; the best of each comes first.

    Until all trials have run these are the best so far, with trials that have no record yet to make up the
    number. There are fewer if trials failed, and none if the search is of one seed.
    """
    if study.finalists == 1:
        return []
    values, done = validations(records), {record["key"] for record in records}
    finalists = []
    for cells in searched(study, records).values():
        waiting = [cell for cell in cells if cell.key not in done]
        finalists.append([*ranked(cells, values), *waiting][: study.finalists])
    return [second_run(cell) for cell in _in_turn(finalists)]


def final_cells(study: Study, chosen: Choices) -> list[Cell]:
    """List the runs that are reported, of every rank and seed that makes a difference, first seeds first."""
    cells = []
    for rank, seed in product(study.budgets, range(study.seeds)):
        for combination in combinations(study):
            repeats_a_seed = seed > 0 and is_untrained(combination)
            repeats_a_rank = rank != study.budgets[0] and combination[2] in ("base", "full")
            if not repeats_a_seed and not repeats_a_rank:
                cells.append(replace(_chosen_cell(combination, study, chosen), rank=rank, seed=seed))
    return cells


def cost_cells(study: Study, chosen: Choices) -> list[Cell]:
    """List the runs whose times are measured alone: one for each model, task and method."""
    return [
        replace(_chosen_cell(combination, study, chosen), stage="cost") for combination in combinations(study)
    ]


def _chosen_cell(combination: Combination, study: Study, chosen: Choices) -> Cell:
    setting = chosen[combination] or NO_SETTING
    return Cell("final", *combination, rank=study.budgets[0], seed=0, **setting._asdict())


def _combination(cell: Cell) -> Combination:
    return cell.model, cell.task, cell.method


def _in_turn(lists: Sequence[Sequence[Cell]]) -> list[Cell]:
    """Take the first cell of every list, then the second of every list, and so on."""
    return [cell for cells in zip_longest(*lists) for cell in cells if cell is not None]
