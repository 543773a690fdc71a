"""Values for JSON: what it cannot hold becomes null, whatever it is nested in."""

import json
import math

import pytest

from shadowpeft.storage.jsonable import finite


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_none(number):
    """Catches a level of nesting that is not looked at."""
    value = {"loss": number, "curve": [1.5, number], "pairs": ({"deep": number}, 2)}
    assert finite(value) == {"loss": None, "curve": [1.5, None], "pairs": [{"deep": None}, 2]}
    json.dumps(finite(value), allow_nan=False)


@pytest.mark.parametrize("value", [0, 0.0, -1e308, True, None, "nan", "", [], {}, [[]]])
def test_everything_else_stays(value):
    assert finite(value) == value
    assert type(finite(value)) is type(value)
