"""The rows of a search by setting, pair of model and task, and seed; and paired differences between them."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shadowpeft.reporting import stats

MODELS = ("gemma-3-270m", "qwen2.5-coder-0.5b")
PAIRS = tuple((model, task) for model in MODELS for task in ("clinc150", "amazon5", "newsgroups20"))
SEARCHED, FRESH = (1000, 1001, 1002), (1003, 1004, 1005)
ALL = SEARCHED + FRESH
# The best rates of each method with a rate for the head, and the best without one.
LORA, SHADOW = "lora 0.0003/0.003", "shadow 0.001/0.003"
LORA_COUPLED, SHADOW_COUPLED = "lora 0.0005", "shadow 0.002"

Pair = tuple[str, str]
Value = Callable[[str, Pair, int], float]


class Measurements:
    """What was measured; runs that failed are left out."""

    def __init__(self, paths: Iterable[Path]) -> None:
        rows = [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
        self.rows: dict[tuple[str, str, str, int], dict[str, Any]] = {}
        for row in rows:
            job = row["job"]
            if row["status"] == "ok":
                self.rows[job["name"], Path(job["model"]).name, job["task"], job["seed"]] = row

    def nll(self, name: str, pair: Pair, seed: int) -> float:
        """Return nats an item, of gsm8k nats a token."""
        metrics = self.rows[(name, *pair, seed)]["metrics"]
        return float(metrics["loss" if pair[1] == "gsm8k" else "nll"])

    def points(self, name: str, pair: Pair, seed: int) -> float:
        """Return percent of the items answered right."""
        return 100 * float(self.rows[(name, *pair, seed)]["metrics"]["accuracy"])

    def detached_points(self, name: str, pair: Pair, seed: int) -> float:
        """Return percent of the items that the detached model answered right."""
        return 100 * float(self.rows[(name, *pair, seed)]["also"][0]["metrics"]["accuracy"])

    def seeds(self, name: str) -> list[int]:
        """List the seeds from which a setting ran on all pairs."""
        return [seed for seed in ALL if all((name, *pair, seed) in self.rows for pair in PAIRS)]

    def names(self) -> list[str]:
        """List all settings."""
        return sorted({key[0] for key in self.rows})

    def mean(self, value: Value, name: str, seeds: Sequence[int], pairs: Sequence[Pair] = PAIRS) -> float:
        """Average a value of a setting over pairs and seeds."""
        return float(np.mean([value(name, pair, seed) for pair in pairs for seed in seeds]))

    def interval(
        self, first: str, second: str, seeds: Sequence[int], pairs: Sequence[Pair]
    ) -> stats.Interval:
        """Return the 95 % interval over items and seeds of a difference in points."""
        cells = []
        for pair in pairs:
            marks = [
                {seed: self.rows[(name, *pair, seed)]["correct"] for seed in seeds}
                for name in (first, second)
            ]
            cells.append((pair[1], stats.paired(*marks)))
        found = stats.average(cells).items_and_seeds
        assert found is not None
        return 100 * found[0], 100 * found[1]


class Result(NamedTuple):
    """A paired difference.

    Attributes:
        mean: over pairs and seeds.
        over_seeds: standard error for other seeds of these pairs.
        over_pairs: standard error for other pairs of model and task.
        half: half of the 95 % interval over seeds.
        lower: in how many runs the first is lower.
        runs: how many there are.
    """

    mean: float
    over_seeds: float
    over_pairs: float
    half: float
    lower: int
    runs: int


def compared(table: np.ndarray) -> Result:
    """Summarise differences: one row a pair, one column a seed."""
    pairs, seeds = table.shape
    variances = table.var(1, ddof=1) / seeds
    error = float(np.sqrt(variances.sum()) / pairs)
    # The degrees of freedom of Welch and Satterthwaite.
    freedom = int(variances.sum() ** 2 / (variances**2 / (seeds - 1)).sum())
    over_pairs = float("nan")
    if pairs > 2:
        over_pairs = float(table.mean(1).std(ddof=1) / np.sqrt(pairs))
    half = stats.t_quantile(freedom) * error
    return Result(
        float(table.mean()), error, over_pairs, half=half, lower=int((table < 0).sum()), runs=table.size
    )


def differences(
    value: Value, first: str, second: str, *, seeds: Sequence[int], pairs: Sequence[Pair] = PAIRS
) -> np.ndarray:
    """Subtract one setting from another, pair by pair and seed by seed."""
    return np.array(
        [[value(first, pair, seed) - value(second, pair, seed) for seed in seeds] for pair in pairs]
    )
