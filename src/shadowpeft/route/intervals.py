"""Exact bounds of shares (Clopper and Pearson 1934), and how many rows a promise takes."""

import math

import numpy as np
from scipy.stats import beta, binom

from shadowpeft.reporting.stats import Interval

# Beyond this many rows nobody is told a number.
_MOST = 10_000_000


def upper_bound(errors: int, kept: int, confidence: float) -> float:
    """Return the upper bound of the share of errors: it holds with this confidence, whatever the share is.

    It is the largest p with P(X <= errors) >= 1 - confidence for X ~ Binomial(kept, p).

    Args:
        errors: how many of the answers are wrong.
        kept: how many answers there are; of none nothing is known, and the bound is 1.
        confidence: of this one side.
    """
    if errors >= kept:
        return 1.0
    return float(beta.ppf(confidence, errors + 1, kept - errors))


def interval(hits: int, count: int, confidence: float = 0.95) -> Interval:
    """Return the interval of a share, with half of the doubt on each side."""
    side = (1 + confidence) / 2
    return 1 - upper_bound(count - hits, count, side), upper_bound(hits, count, side)


def errors_allowed(kept: np.ndarray, risk: float, confidence: float) -> np.ndarray:
    """Return how many errors among so many kept answers still certify a risk; -1 if not even none does."""
    allowed = binom.ppf(1 - confidence, kept, risk)
    # The quantile is the least number that reaches 1 - confidence; what counts must not exceed it.
    return np.where(binom.cdf(allowed, kept, risk) <= 1 - confidence, allowed, allowed - 1).astype(int)


def kept_needed(risk: float, confidence: float, error_rate: float = 0.0) -> int | None:
    """Return how many kept answers certify a risk if this share of them is wrong.

    Without an error it is log(1 - confidence) / log(1 - risk), rounded up: 59 for 5 % at 95 %.

    Returns:
        The number; `None` if none does, since the share is not below the risk.
    """
    least = math.ceil(math.log1p(-confidence) / math.log1p(-risk) - 1e-9)
    if error_rate >= risk:
        return None
    low, high = least - 1, least
    while not _certified(high, risk, confidence, error_rate):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _certified(middle, risk, confidence, error_rate) else (middle, high)
    return high


def _certified(kept: int, risk: float, confidence: float, error_rate: float) -> bool:
    return upper_bound(math.ceil(error_rate * kept - 1e-9), kept, confidence) <= risk
