"""One method's results on one task over its seeds, and their pairing with LoRA's."""

from dataclasses import dataclass, replace

import numpy as np

from shadowpeft.compare.records import Record, number
from shadowpeft.errors import DataError
from shadowpeft.reporting import stats
from shadowpeft.reporting.stats import Estimate

REFERENCE = "lora"


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method in one mode, trained on one task and measured on one, over its seeds: a line of a table.

    Results are compared by identity, so that they can be keys.

    Attributes:
        model: the base.
        trained_on: the task it was trained on.
        task: the task it was measured on.
        method: the method.
        mode: `attached` or `detached`.
        rank: the LoRA rank that sets its budget.
        records: one for each seed, in their order.
    """

    model: str
    trained_on: str
    task: str
    method: str
    mode: str
    rank: int
    records: tuple[Record, ...]

    @property
    def name(self) -> str:
        """The method, with its mode if that is not `attached`."""
        if self.mode == "attached":
            return self.method
        return f"{self.method} {self.mode}"

    @property
    def items(self) -> int:
        """The number of test items."""
        return int(self.mean("items") or 0)

    @property
    def marks(self) -> dict[int, str]:
        """Which items were answered correctly, a string of 0 and 1 for each seed that has them."""
        return {record["seed"]: record["correct"] for record in self.records if record.get("correct")}

    @property
    def is_untuned(self) -> bool:
        """Whether the model is the untuned base, which is the same for every seed."""
        return self.method == "base" and len(self.records) == 1 and not number(self.records[0], "steps")

    def by_seed(self, field: str) -> dict[int, float | None]:
        """Return a field of each seed."""
        return {record["seed"]: number(record, field) for record in self.records}

    def values(self, field: str) -> list[float]:
        """Return the numbers of a field, one for each seed that has it."""
        found = (number(record, field) for record in self.records)
        return [value for value in found if value is not None]

    def estimate(self, field: str) -> Estimate | None:
        """Estimate the mean of a field over seeds."""
        return stats.mean_interval(self.values(field))

    def mean(self, field: str) -> float | None:
        """Return the mean of a field over seeds."""
        values = self.values(field)
        if values:
            return sum(values) / len(values)
        return None

    def with_seeds_of(self, other: "MethodResult") -> "MethodResult":
        """Leave out the seeds that the other result lacks; the untuned base has no seeds to share."""
        if self.is_untuned or other.is_untuned:
            return self
        seeds = other.marks
        return replace(self, records=tuple(record for record in self.records if record["seed"] in seeds))


def shares_seeds(result: MethodResult, reference: MethodResult) -> bool:
    """Return whether the two can be paired."""
    own, other = result.marks, reference.marks
    if result.is_untuned:
        return bool(own and other)
    return bool(set(own) & set(other))


def pair(result: MethodResult, reference: MethodResult) -> np.ndarray:
    """Return the differences of two results by seed and item, as `stats.paired` does.

    Raises:
        DataError: they are of different items, or cannot be paired.
    """
    records = (*result.records, *reference.records)
    digests = {record["items_digest"] for record in records if record.get("items_digest")}
    where = f"{result.name} and {reference.name}, {result.model} on {result.task}"
    if len(digests) > 1:
        raise DataError(
            f"{where}: expected the same items in the same order, got different ones; "
            "measure both on the same split"
        )
    own, other = result.marks, reference.marks
    if result.is_untuned:  # its one record stands for every seed
        own = {seed: marks for marks in own.values() for seed in other}
    try:
        return stats.paired(own, other)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def differences_by_seed(result: MethodResult, reference: MethodResult, field: str) -> list[float]:
    """Return the differences of a field, one for each seed that both results have."""
    own, other = result.by_seed(field), reference.by_seed(field)
    if result.is_untuned:
        own = dict.fromkeys(other, number(result.records[0], field))
    pairs = ((own[seed], other.get(seed)) for seed in own)
    return [a - b for a, b in pairs if a is not None and b is not None]
