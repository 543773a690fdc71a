"""How sure a model is of its answers, compared with how often they are right."""

from collections.abc import Sequence
from typing import Any

import torch

BINS = 10


def calibration(probabilities: Sequence[Sequence[float]], correct: Sequence[int]) -> dict[str, Any]:
    """Compare the confidence of answers, their largest probability, with their accuracy.

    The expected calibration error is sum_b n_b / n * |confidence_b - accuracy_b|, over ten bins b of equal
    width (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        probabilities: of all classes or choices, for each item.
        correct: 1 or 0 for each item.

    Returns:
        `ece`, the expected calibration error, and `bins`: size, mean confidence and accuracy of each (0 if
        empty).
    """
    members: list[list[tuple[float, int]]] = [[] for _ in range(BINS)]
    for row, right in zip(probabilities, correct, strict=True):
        confidence = max(row)
        # A confidence of 1 belongs to the last bin.
        members[min(int(confidence * BINS), BINS - 1)].append((confidence, right))
    bins = [(len(b), _mean([c for c, _ in b]), _mean([r for _, r in b])) for b in members]
    ece = sum(n * abs(confidence - accuracy) for n, confidence, accuracy in bins) / max(1, len(correct))
    return {"ece": ece, "bins": [list(entry) for entry in bins]}


def negative_log_likelihood(probabilities: Sequence[Sequence[float]], targets: Sequence[int]) -> float:
    """Return the mean of -log of the right answer's probability: finer than accuracy if there are few items.

    A target that is not among the classes counts as a probability of 0, and 0 as 1e-12.
    """
    picked = [_at(row, target) for row, target in zip(probabilities, targets, strict=True)]
    return -torch.tensor(picked, dtype=torch.float64).clamp(min=1e-12).log().mean().item()


def _at(row: Sequence[float], index: int) -> float:
    return row[index] if 0 <= index < len(row) else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
