"""Where thresholds are put."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import beta

from shadowpeft.route.thresholds import at_share, certify, cheapest, sequence

THRESHOLDS = (3.0, 2.0, 1.0)
RISK, CONFIDENCE = 0.3, 0.8


def outcomes(rows):
    """Every number of right and wrong answers at each of three scores, of so many rows."""
    for bars in itertools.combinations(range(rows + 5), 5):
        edges = (-1, *bars, rows + 5)
        yield [after - before - 1 for before, after in itertools.pairwise(edges)]


def probability(counts, cells):
    ways = math.factorial(sum(counts))
    for count in counts:
        ways //= math.factorial(count)
    return ways * math.prod(cell**count for cell, count in zip(cells, counts, strict=True))


def rows_of(counts):
    pairs = [(score, wrong) for score in THRESHOLDS for wrong in (False, True)]
    rows = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    return np.array([score for score, _ in rows]), np.array([wrong for _, wrong in rows], dtype=bool)


def chance_of_a_false_promise(choose, shares, risks, rows=9):
    """The exact probability that a threshold is chosen whose true risk exceeds the promise."""
    cells = [share * part for share, risk in zip(shares, risks, strict=True) for part in (1 - risk, risk)]
    true = np.cumsum(np.multiply(shares, risks)) / np.cumsum(shares)
    chance = 0.0
    for counts in outcomes(rows):
        chosen = choose(*rows_of(counts))
        if chosen is not None and true[THRESHOLDS.index(chosen)] > RISK:
            chance += probability(counts, cells)
    return chance


def in_sequence(scores, wrong):
    passed, _ = certify(THRESHOLDS, scores, wrong, RISK, CONFIDENCE)
    return passed and passed.threshold


def any_that_passes(scores, wrong):
    """What is done wrong most often: the loosest of all thresholds whose bound is low enough."""
    alone = [certify([threshold], scores, wrong, RISK, CONFIDENCE)[0] for threshold in THRESHOLDS]
    return next((tried.threshold for tried in reversed(alone) if tried is not None), None)


@pytest.mark.parametrize("risks", [(0.301, 0.301, 0.301), (0.1, 0.5, 0.6), (0.301, 0.1, 0.9)])
def test_a_promise_is_false_no_more_often_than_it_says(risks):
    """Enumerates every outcome of nine rows."""
    assert chance_of_a_false_promise(in_sequence, (0.5, 0.25, 0.25), risks) <= 1 - CONFIDENCE + 1e-12


def test_without_the_sequence_it_would_be():
    """The reason for the order: the best of several tests is no test."""
    assert chance_of_a_false_promise(any_that_passes, (0.5, 0.25, 0.25), (0.301,) * 3) > 1 - CONFIDENCE


def test_the_sequence_stops_at_the_first_failure():
    """Catches a search that goes on and finds a looser threshold that passes by chance."""
    scores = np.array([3.0] * 30 + [2.0] * 10 + [1.0] * 300)
    wrong = np.array([False] * 30 + [True] * 10 + [False] * 300)
    passed, failed = certify(THRESHOLDS, scores, wrong, risk=0.1, confidence=0.95)
    assert (passed.threshold, passed.kept, passed.errors) == (3.0, 30, 0)
    assert (failed.threshold, failed.kept, failed.errors) == (2.0, 40, 10)
    alone, _ = certify([1.0], scores, wrong, risk=0.1, confidence=0.95)
    assert alone is not None


def test_the_sequence_begins_where_a_pass_is_likeliest():
    """Catches a start at a few surest answers, where one error by chance would end it."""
    random = np.random.default_rng(0)
    scores = random.normal(size=1000)
    wrong = random.random(1000) < 0.5 / (1 + np.exp(3 * scores))
    found = sequence(scores, wrong, others=1000, risk=0.05, confidence=0.95)
    assert found == sorted(found, reverse=True)
    kept_first = (scores >= found[0]).mean()
    assert 0.2 < kept_first < 0.7
    assert found[-1] == scores.min()
    assert sequence(np.array([-math.inf]), np.array([True]), 10, 0.05, 0.95) == []


def test_a_share_is_the_quantile():
    threshold, (low, high) = at_share(np.arange(100.0), 0.2, 0.95)
    assert threshold == 20
    # Of the 20 below among 100: wider than the order statistic's own distribution.
    assert low <= beta.ppf(0.025, 21, 80) < 0.2 < beta.ppf(0.975, 21, 80) <= high
    assert at_share(np.array([-math.inf] * 3 + [1.0] * 7), 0.2, 0.95)[0] == -math.inf


def test_the_interval_of_a_share_holds_for_requests_to_come():
    """Catches an interval of the wrong count. For uniform scores the share below a threshold is itself."""
    random = np.random.default_rng(0)
    holds = 0
    for _ in range(400):
        threshold, (low, high) = at_share(random.random(150), 0.2, 0.9)
        holds += low <= threshold <= high
    assert 0.9 <= holds / 400 <= 0.96


def test_the_cheapest_threshold_is_that_of_all():
    """Compares with every threshold there is, with equal scores and rows that are never kept."""
    random = np.random.default_rng(0)
    for _ in range(20):
        scores = np.where(random.random(40) < 0.2, -math.inf, random.integers(0, 9, 40))
        kept, sent = 100.0 * (random.random(40) < 0.3), np.full(40, 20.0)
        prices = {t: np.where(scores >= t, kept, sent).sum() for t in {*scores, math.inf} - {-math.inf}}
        found = cheapest(scores, kept, sent)
        assert prices[found] == min(prices.values())
        assert found == min(t for t, price in prices.items() if price == prices[found])
    assert cheapest(np.array([1.0, 2.0]), np.array([9.0, 9.0]), np.array([1.0, 1.0])) == math.inf
