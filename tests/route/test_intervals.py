"""Exact bounds of shares."""

import numpy as np
import pytest
from scipy.stats import binom

from shadowpeft.route.intervals import errors_allowed, interval, kept_needed, upper_bound


def test_known_bounds():
    """Catches a confidence of two sides in place of one, and the lower bound in place of the upper."""
    assert upper_bound(0, 59, 0.95) < 0.05 < upper_bound(0, 58, 0.95)
    assert upper_bound(3, 100, 0.95) == pytest.approx(0.07571, abs=1e-5)
    assert interval(3, 100) == pytest.approx((0.00623, 0.08518), abs=1e-5)
    assert upper_bound(0, 0, 0.95) == upper_bound(7, 7, 0.95) == 1


@pytest.mark.parametrize("count", [1, 10, 59, 150])
@pytest.mark.parametrize("share", [0.001, 0.05, 0.3, 0.9])
def test_the_bound_holds_as_often_as_it_says(count, share):
    """Sums over every number of errors there can be, so that nothing is left to chance."""
    for confidence in (0.8, 0.95):
        holds = sum(
            binom.pmf(errors, count, share)
            for errors in range(count + 1)
            if upper_bound(errors, count, confidence) >= share
        )
        assert holds >= confidence - 1e-12


def test_how_many_rows_a_promise_takes():
    assert kept_needed(0.05, 0.95) == 59
    assert kept_needed(0.01, 0.95) == 299
    assert kept_needed(0.1, 0.9) == 22
    assert kept_needed(0.05, 0.95, 0.05) is None
    assert kept_needed(0.05, 0.95, 0.0499999) is None
    needed = kept_needed(0.05, 0.95, 0.02)
    assert needed > 59
    assert upper_bound(round(0.02 * needed + 0.4999), needed, 0.95) <= 0.05


@pytest.mark.parametrize("risk", [0.05, 0.2])
def test_errors_that_are_allowed(risk):
    kept = np.array([0, 1, 58, 59, 93, 400])
    passing = [[e for e in range(count + 1) if upper_bound(e, count, 0.95) <= risk] for count in kept]
    expected = [max(errors, default=-1) for errors in passing]
    assert errors_allowed(kept, risk, 0.95).tolist() == expected
