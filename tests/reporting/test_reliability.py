"""How sure a model is, compared with how often it is right."""

import pytest

from shadowpeft.reporting.reliability import reliability


def test_known_confidences():
    """Catches bins that are off by one, a confidence of 1 without a bin, and an error that is not weighted by
    size."""
    error, bins = reliability([1.0, 0.95, 0.55, 0.6], [1, 0, 1, 0])
    assert [entry.size for entry in bins] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    assert bins[9][1:] == (pytest.approx(0.975), 0.5)
    assert error == pytest.approx((2 * 0.475 + 0.45 + 0.6) / 4)
    assert reliability([], [])[0] == 0
