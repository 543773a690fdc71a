"""The trials of a study's search, and their values on the validation split."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from shadowpeft.compare.cell import Cell
from shadowpeft.compare.records import Record, number
from shadowpeft.compare.study import Study
from shadowpeft.compare.tasks import find

Combination = tuple[str, str, str]  # model, task, method


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
    _, task, method = combination
    return [
        Cell("search", *combination, rank=study.budgets[0], seed=study.search_seed, **setting._asdict())
        for setting in study.candidates(method, task)
    ]


def second_run(trial: Cell) -> Cell:
    """Return a trial's run from the second seed."""
    return replace(trial, seed=trial.seed + 1)


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
