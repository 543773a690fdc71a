"""The probability of an error by score."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from shadowpeft.errors import DataError
from shadowpeft.route.isotonic import fit_knots


def test_the_knots_are_scikit_learns_regression():
    """Catches knots that are dropped, of the wrong direction, or not constant beyond the ends."""
    random = np.random.default_rng(0)
    scores = random.normal(size=300).round(1)
    wrong = random.random(300) < 1 / (1 + np.exp(2 * scores))
    knots = fit_knots(scores.tolist(), wrong.tolist())
    direct = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(scores, wrong.astype(float))
    asked = np.linspace(-6, 6, 501)
    assert np.interp(asked, *np.array(knots).T) == pytest.approx(direct.predict(asked))
    assert len({error for _, error in knots}) > 3


@pytest.mark.parametrize(
    ("scores", "wrong", "message"),
    [
        ([], [], "got none that is not the deferral answer"),
        ([1.0, 2.0, 3.0], [False] * 3, "all 3 answers .* are right"),
        ([1.0, 2.0], [True] * 2, "all 2 answers .* are wrong"),
        ([0.5, 0.5, 0.5], [True, False, False], "have the same score, 0.5"),
    ],
)
def test_answers_of_one_kind_are_refused(scores, wrong, message):
    with pytest.raises(DataError, match=message):
        fit_knots(scores, wrong)
