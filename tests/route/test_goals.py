"""What a policy is to promise."""

import pytest

from shadowpeft.errors import ConfigError
from shadowpeft.route.goals import Prices, Risk, Share, parse_prices


def test_prices_are_read_by_name():
    assert parse_prices("cloud=20, error=1e2,edge=1") == Prices(1.0, 20.0, 100.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "edge=1",
        "edge=1,cloud=2,fault=3",
        "edge=1,cloud=2,error=x",
        "edge=1,edge=2,cloud=3,error=4",
        "1,2,3",
    ],
)
def test_other_prices_are_refused(text):
    with pytest.raises(ConfigError, match="edge=1,cloud=20,error=100"):
        parse_prices(text)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Risk, (0, 0.95)),
        (Risk, (0.05, 1)),
        (Share, (1, 0.95)),
        (Prices, (1, -1, 2)),
        (Prices, (1, 1, float("nan"))),
    ],
)
def test_goals_out_of_range_are_refused(kind, values):
    with pytest.raises(ConfigError, match="must be"):
        kind(*map(float, values))
