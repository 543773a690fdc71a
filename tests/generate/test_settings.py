"""What a caller asks for. What is refused of it is in tests/model/test_drafting.py."""

from typing import Any

import numpy as np
import pytest

from shadowpeft.errors import UserError
from shadowpeft.generate import Drafting, drafting_of


@pytest.mark.parametrize(("tokens", "want"), [(None, None), ("auto", None), (1, 1), (np.int64(7), 7)])
def test_what_can_be_asked_for(tokens: Any, want: int | None) -> None:
    """Catches a number or a word that is not understood."""
    assert drafting_of("shadow", tokens) == Drafting(want)
    assert drafting_of(None, None) is None


@pytest.mark.parametrize(
    ("draft", "tokens", "says"),
    [
        ("shadow", 0, '1 or more, or "auto", got 0'),
        ("shadow", -3, "got -3"),
        ("shadow", 2.5, "got 2.5"),
        ("shadow", True, "got True"),
        ("shadow", "many", "got 'many'"),
        ("shadow", float("nan"), "got nan"),
        ("Shadow", None, "draft must be \"shadow\" or left out, got 'Shadow'"),
        (True, 4, "got True"),
        (None, 4, 'give draft="shadow"'),
    ],
)
def test_what_cannot_be_asked_for(draft: Any, tokens: Any, says: str) -> None:
    """Catches a value that is taken for another."""
    with pytest.raises(UserError, match=says):
        drafting_of(draft, tokens)
