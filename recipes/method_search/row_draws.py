"""Train on few rows that a run's seed draws: the same ones for every method."""

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from shadowpeft.compare import run_cell
from shadowpeft.errors import ConfigError


@contextmanager
def rows_drawn(count: int | None) -> Iterator[dict[str, Any]]:
    """Train within the context on `count` rows that the seed of a run draws; `None` for all rows.

    `train_rows` of a study draws the same rows for every seed, and how good the sample is would then be no
    part of the noise.

    Yields:
        What was drawn: how many `rows`, how many `labels` a classifier's have, and a `digest` that is equal
        for equal rows; empty until a model has been trained.

    Raises:
        ConfigError: while training: there are fewer rows.
    """
    plain = run_cell.CellRun.examples
    drawn: dict[str, Any] = {}

    def examples(self: run_cell.CellRun, split: Any, limit: int | None) -> list[Any]:
        rows = plain(self, split, limit)
        if split != "train" or count is None:
            return rows
        if count > len(rows):
            raise ConfigError(
                f"{self.task.name} has {len(rows):,} training rows, asked for {count:,}; ask for fewer"
            )
        # A text, so that the order of the rows, which the seed draws too, is another draw.
        rows = random.Random(f"rows of seed {self.cell.seed}").sample(rows, count)
        drawn.update(rows=count, digest=hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])
        if self.task.kind == "classification":
            drawn["labels"] = len({row["labels"] for row in rows})
        return rows

    run_cell.CellRun.examples = examples  # type: ignore[method-assign]
    try:
        yield drawn
    finally:
        run_cell.CellRun.examples = plain  # type: ignore[method-assign]
