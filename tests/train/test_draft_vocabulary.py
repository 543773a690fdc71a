"""Which tokens a run lets its shadow draft."""

from typing import Any

import pytest

from shadowpeft.data.encode import NO_LOSS
from shadowpeft.train.draft_vocabulary import most_frequent

EXAMPLES: Any = [
    {"input_ids": [9, 9, 9, 5, 5, 7], "labels": [NO_LOSS, NO_LOSS, NO_LOSS, 5, 5, 7]},
    {"input_ids": [9, 8, 7, 5], "labels": [NO_LOSS, 8, 7, 5]},
]


@pytest.mark.parametrize(
    ("size", "special", "want"),
    [
        (1, [], [5]),
        (2, [], [5, 7]),
        # An end that is no answer's most frequent token, and one that the model does not know.
        (2, [1, 50], [1, 5, 7]),
        (2, [5], [5, 7, 8]),
        # More than occur: the lowest ids.
        (5, [], [0, 1, 5, 7, 8]),
        (99, [], list(range(12))),
    ],
)
def test_the_most_frequent_labelled_tokens_are_taken(size: int, special: Any, want: list[int]) -> None:
    """Catches tokens of prompts that are counted, and special ones that are lost or counted twice."""
    assert most_frequent(EXAMPLES, size, special, vocab_size=12) == want


def test_ties_are_broken_the_same_way_every_time() -> None:
    """Catches another vocabulary for the same data."""
    examples: Any = [{"input_ids": ids, "labels": ids} for ids in ([4, 3, 2], [2, 3, 4])]
    assert most_frequent(examples, 2, [], vocab_size=9) == [2, 3]
