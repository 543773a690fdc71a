"""Where to put the threshold: certified for a risk, at a share of requests, or where it costs least.

Scores are those of whole sets of rows; a row whose answer is never kept has the score -inf.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from shadowpeft.reporting.stats import Interval
from shadowpeft.route.intervals import errors_allowed, upper_bound

# Thresholds that a certificate tries. More would stop earlier at a chance error; fewer would keep less.
STEPS = 100


@dataclass(frozen=True)
class Tried:
    """A threshold that was tested.

    Attributes:
        threshold: the least score kept.
        kept: answers kept.
        errors: wrong ones among them.
        bound: upper bound of their share.
    """

    threshold: float
    kept: int
    errors: int
    bound: float


def sequence(
    scores: np.ndarray, wrong: np.ndarray, others: int, risk: float, confidence: float
) -> list[float]:
    """Return the thresholds to test, from strict to loose, as the rows that are *not* tested suggest.

    The first is the one likeliest to pass: too few kept answers can prove nothing, too many hold too many
    errors. Since it comes from rows of their own, the tests need no correction for there being several.

    Args:
        scores: of the rows that the suggestion comes from.
        wrong: whether each answer is wrong.
        others: how many rows will be tested.
        risk: the share of errors among kept answers that is allowed.
        confidence: of the bound.
    """
    finite = np.sort(scores[np.isfinite(scores)])
    if not len(finite):
        return []
    picked = np.linspace(0, len(finite) - 1, min(STEPS, len(finite))).round().astype(int)
    strict_to_loose = np.unique(finite[picked])[::-1]
    kept = np.array([(scores >= threshold).sum() for threshold in strict_to_loose])
    errors = np.array([wrong[scores >= threshold].sum() for threshold in strict_to_loose])
    # One half more: without an error among few answers nothing is certain.
    rates = (errors + 0.5) / (kept + 1)
    expected = (kept * others / len(scores)).round().astype(int)
    allowed = errors_allowed(expected, risk, confidence)
    passing = np.where(allowed >= 0, binom.cdf(allowed, expected, rates), 0.0)
    return strict_to_loose[int(passing.argmax()) :].tolist()


def certify(
    thresholds: Sequence[float], scores: np.ndarray, wrong: np.ndarray, risk: float, confidence: float
) -> tuple[Tried | None, Tried | None]:
    """Test thresholds in their order until the first fails (fixed-sequence testing).

    Each test asks whether the upper bound of the errors among the kept answers is at most the risk. A
    threshold counts only if all before it passed. So the chance that any passes whose true risk is higher is
    at most 1 - confidence, without a correction (Angelopoulos et al. 2021, "Learn then Test").

    Args:
        thresholds: in the order of testing, chosen without these rows.
        scores: of the rows to test on.
        wrong: whether each answer is wrong.
        risk: the share of errors among kept answers that is allowed.
        confidence: of the bound.

    Returns:
        The last that passed and the first that failed; `None` if there is none.
    """
    passed = None
    for threshold in thresholds:
        keeps = scores >= threshold
        kept, errors = int(keeps.sum()), int(wrong[keeps].sum())
        tried = Tried(threshold, kept, errors, upper_bound(errors, kept, confidence))
        if tried.bound > risk:
            return passed, tried
        passed = tried
    return passed, None


def at_share(scores: np.ndarray, share: float, confidence: float) -> tuple[float, Interval]:
    """Return the threshold that sends a share of the requests, and the interval of what it will send.

    The threshold is the score of rank k. Where scores do not repeat, the share of all future requests below
    it has the distribution Beta(k, n - k + 1), whatever the scores' own distribution (order statistics).

    Args:
        scores: of all rows.
        share: of the requests to send, between 0 and 1.
        confidence: of the interval.

    Returns:
        The threshold and the interval. The threshold is -inf if the share is below that of the rows that are
        never kept.
    """
    ordered, count = np.sort(scores), len(scores)
    rank = min(round(share * count), count - 1)
    threshold = float(ordered[rank])
    # Rows of the same score are kept together, so what is sent may be less than was asked for.
    sent = int((scores < threshold).sum())
    side = (1 - confidence) / 2
    low = float(beta.ppf(side, sent, count - sent + 1)) if sent else 0.0
    high = float(beta.ppf(1 - side, sent + 1, count - sent)) if sent < count else 1.0
    return threshold, (low, high)


def cheapest(scores: np.ndarray, prices_kept: np.ndarray, prices_sent: np.ndarray) -> float:
    """Return the threshold of the least total price; the lowest of several, +inf if all should be sent.

    Args:
        scores: of the rows.
        prices_kept: what each row costs if its answer is kept.
        prices_sent: what each row costs if it is sent.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    # Sent so far along the rising scores, and kept from there on.
    sent = np.concatenate([[0.0], prices_sent[order].cumsum()])
    kept = prices_kept.sum() - np.concatenate([[0.0], prices_kept[order].cumsum()])
    # A threshold stands at the first of equal scores, or above all.
    first = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])
    at = np.flatnonzero(first & np.append(np.isfinite(ordered), True))
    best = at[int((sent + kept)[at].argmin())]
    return float(ordered[best]) if best < len(ordered) else float("inf")
