"""How sure a model is of its answers, compared with how often they are right."""

from collections.abc import Sequence
from typing import Any

import torch

from shadowpeft.reporting.reliability import reliability


def calibration(probabilities: Sequence[Sequence[float]], correct: Sequence[int]) -> dict[str, Any]:
    """Compare the confidence of answers, their largest probability, with their accuracy.

    Args:
        probabilities: of all classes or choices, for each item.
        correct: 1 or 0 for each item.

    Returns:
        `ece`, the expected calibration error, and `bins`: size, mean confidence and accuracy of each (0 if
        empty), as `shadowpeft.reporting.reliability` has them.
    """
    ece, bins = reliability([max(row) for row in probabilities], correct)
    return {"ece": ece, "bins": [list(entry) for entry in bins]}


def negative_log_likelihood(probabilities: Sequence[Sequence[float]], targets: Sequence[int]) -> float:
    """Return the mean of -log of the right answer's probability: finer than accuracy if there are few items.

    A target that is not among the classes counts as a probability of 0, and 0 as 1e-12.
    """
    picked = [_at(row, target) for row, target in zip(probabilities, targets, strict=True)]
    return -torch.tensor(picked, dtype=torch.float64).clamp(min=1e-12).log().mean().item()


def _at(row: Sequence[float], index: int) -> float:
    return row[index] if 0 <= index < len(row) else 0.0
