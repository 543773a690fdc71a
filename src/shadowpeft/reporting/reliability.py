"""How often answers are right, compared with how sure a model was of them."""

from collections.abc import Sequence
from typing import NamedTuple

BINS = 10


class Bin(NamedTuple):
    """Answers of similar confidence.

    Attributes:
        size: how many there are.
        confidence: their mean confidence, 0 without any.
        accuracy: the share that is right, 0 without any.
    """

    size: int
    confidence: float
    accuracy: float


def reliability(confidences: Sequence[float], correct: Sequence[int]) -> tuple[float, list[Bin]]:
    """Compare confidences with accuracy.

    The expected calibration error is sum_b n_b / n * |confidence_b - accuracy_b|, over ten bins b of equal
    width (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        confidences: the probability that each answer is right.
        correct: 1 or 0 for each.

    Returns:
        The expected calibration error and the bins.
    """
    members: list[list[tuple[float, int]]] = [[] for _ in range(BINS)]
    for confidence, right in zip(confidences, correct, strict=True):
        # A confidence of 1 belongs to the last bin.
        members[min(int(confidence * BINS), BINS - 1)].append((confidence, right))
    bins = [Bin(len(b), _mean([c for c, _ in b]), _mean([r for _, r in b])) for b in members]
    error = sum(each.size * abs(each.confidence - each.accuracy) for each in bins) / max(1, len(correct))
    return error, bins


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
