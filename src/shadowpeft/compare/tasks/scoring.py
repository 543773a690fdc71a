"""Metrics that several tasks share."""

from collections.abc import Sequence
from typing import Any

from shadowpeft.compare.tasks.base import Item, Scores


def accuracy(items: Sequence[Item], answers: Sequence[Any]) -> Scores:
    """Score indices of classes or choices by the share of right ones."""
    correct = [int(item.target == answer) for item, answer in zip(items, answers, strict=True)]
    return Scores(correct, {"accuracy": mean(correct)})


def by_group(items: Sequence[Item], values: Sequence[float]) -> dict[str, float]:
    """Average values over the items of each group; groups in alphabetical order."""
    grouped: dict[str, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        grouped.setdefault(item.group, []).append(value)
    return {group: mean(grouped[group]) for group in sorted(grouped)}


def mean(values: Sequence[float]) -> float:
    """Return the mean of at least one value."""
    assert values, "a task is scored on at least one item"
    return sum(values) / len(values)


def until_stop(text: str, stop: Sequence[str]) -> str:
    """Strip a generated answer and cut it at the first stop text."""
    text = text.strip()
    return text[: min([text.find(end) for end in stop if end in text], default=len(text))].rstrip()
