"""What a draft vocabulary may be."""

from typing import Any

import pytest
import torch

from shadowpeft.errors import ConfigError
from shadowpeft.shadow.draft_vocabulary import checked


def test_ids_are_kept_in_order() -> None:
    """Catches ids that keep the order, type or place that they came in."""
    for given in ([5, 0, 3], (5, 0, 3), torch.tensor([3, 5, 0], dtype=torch.int32)):
        found = checked(given, 6)
        assert found.tolist() == [0, 3, 5]
        assert found.dtype == torch.long


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "at least one"),
        ([[1, 2]], r"shape \(1, 2\)"),
        ([1.0, 2.0], "float32"),
        ([True, False], "bool"),
        ([1, 6], "from 0 to 5, the base's tokens, got 6"),
        ([-1, 2], "got -1"),
        ([1, 2, 1], "once, got 1"),
    ],
)
def test_what_is_no_vocabulary_is_refused(ids: Any, says: str) -> None:
    """Catches rows that the head does not have, and tokens with two scores."""
    with pytest.raises(ConfigError, match=says):
        checked(ids, 6)
