"""How sure a model is, compared with how often it is right."""

import pytest

from shadowpeft.evaluation.calibration import calibration


def test_calibration_of_known_probabilities() -> None:
    """Catches bins that are off by one, a confidence of 1 without a bin, and an error that is not weighted by
    size."""
    sure = [[1.0, 0.0], [0.95, 0.05], [0.45, 0.55], [0.6, 0.4]]
    found = calibration(sure, [1, 0, 1, 0])
    assert [entry[0] for entry in found["bins"]] == [0, 0, 0, 0, 0, 1, 1, 0, 0, 2]
    assert found["bins"][9][1:] == [pytest.approx(0.975), 0.5]
    assert found["ece"] == pytest.approx((2 * 0.475 + 0.45 + 0.6) / 4)
