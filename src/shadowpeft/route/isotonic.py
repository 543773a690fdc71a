"""From a score to the probability of an error: a falling step of straight lines, fitted to answers."""

from collections.abc import Sequence

import numpy as np
from sklearn.isotonic import IsotonicRegression

from shadowpeft.errors import DataError

Knots = tuple[tuple[float, float], ...]


def fit_knots(scores: Sequence[float], wrong: Sequence[bool]) -> Knots:
    """Fit the probability of an error that never rises with the score, by least squares.

    Args:
        scores: of the answers, finite.
        wrong: whether each is wrong.

    Returns:
        Pairs of a score and a probability, by rising score; `numpy.interp` reads between them.

    Raises:
        DataError: all scores are equal, or all answers are right or all wrong: there is nothing to fit.
    """
    refuse_one_kind(scores, wrong)
    found = IsotonicRegression(increasing=False, y_min=0.0, y_max=1.0, out_of_bounds="clip")
    found.fit(np.asarray(scores, dtype=float), np.asarray(wrong, dtype=float))
    return tuple(zip(found.X_thresholds_.tolist(), found.y_thresholds_.tolist(), strict=True))


def refuse_one_kind(scores: Sequence[float], wrong: Sequence[bool]) -> None:
    """Refuse answers that show nothing of how the score and the errors go together.

    Raises:
        DataError: there are none, or all are right, all are wrong, or all have the same score.
    """
    count, errors = len(scores), sum(map(bool, wrong))
    if count == 0:
        raise DataError(
            "expected answers to calibrate on, got none that is not the deferral answer; give more rows"
        )
    if errors in (0, count):
        kind = "wrong" if errors else "right"
        raise DataError(
            f"all {count} answers that P(error) is fitted to are {kind}, so that no score can be told from "
            "another; give more rows, with right and wrong answers among them"
        )
    if min(scores) == max(scores):
        raise DataError(
            f"all {count} answers that P(error) is fitted to have the same score, {scores[0]:g}, which tells "
            "none from another; choose another score"
        )
