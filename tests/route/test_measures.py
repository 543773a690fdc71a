"""Curves and areas of a score, and what a policy does on rows."""

import itertools
import math

import numpy as np
import pytest
from helpers.answered import REMOTE, made_up

from shadowpeft.route import measures
from shadowpeft.route.answered import Table, tabulate
from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Share
from shadowpeft.route.intervals import interval

# Two pairs of equal scores, and a deferral answer, which is right.
SCORES = np.array([-math.inf, 1.0, 1.0, 2.0, 3.0, 3.0])
RIGHT = np.array([True, False, True, False, True, True])
CLOUD = np.array([True, True, True, False, True, False])
TABLE = Table(SCORES, RIGHT, CLOUD)


def orders():
    """Every order of the answers by falling score, with equal scores in any order."""
    for surest, rest in itertools.product([(4, 5), (5, 4)], [(1, 2), (2, 1)]):
        yield [*surest, 3, *rest]


def test_the_area_is_the_mean_over_the_orders_of_equal_scores():
    """Catches ties that are counted in the order of the rows, which would favour whoever sorts them well."""
    areas = [
        np.mean([np.mean(~RIGHT[order[: count + 1]]) for count in range(5)]) for order in map(list, orders())
    ]
    found = measures.worth(TABLE, "any")
    assert found.area == pytest.approx(np.mean(areas))
    pairs = [(r, w) for r in SCORES[1:][RIGHT[1:]] for w in SCORES[1:][~RIGHT[1:]]]
    assert found.auroc == pytest.approx(np.mean([(r > w) + (r == w) / 2 for r, w in pairs]))


def test_answers_of_one_kind_have_no_worth():
    assert measures.worth(Table(SCORES, np.ones(6, dtype=bool), None), "any") is None
    assert measures.worth(Table(np.full(2, -math.inf), RIGHT[:2], None), "any") is None


def test_risk_against_coverage_leaves_out_what_is_never_kept():
    coverages, risks = measures.risk_coverage(TABLE)
    assert coverages.tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert risks.tolist() == pytest.approx([0, 0, 1 / 3, 1.5 / 4, 2 / 5])


def test_the_curve_of_quality_runs_from_the_edge_to_the_cloud():
    """Catches a curve that sends the surest first, and deferral answers that are not sent before all."""
    shares, quality = measures.quality_curve(TABLE)
    at = {
        round(share * 6): value for share, value in zip(shares, quality, strict=True) if 6 * share % 1 < 1e-9
    }
    assert at[0] == pytest.approx(RIGHT.mean())
    assert at[6] == pytest.approx(CLOUD.mean())
    assert np.interp(3 / 6, shares, quality) == pytest.approx((4 + 1) / 6, abs=0.01)
    # Sent: the deferral answer and the two of score 1. One of these was wrong, and the cloud has it right.
    sent, value = measures.point(TABLE, 2.0)
    assert (sent, value) == (pytest.approx(3 / 6), pytest.approx(5 / 6))
    assert np.interp(sent, shares, quality) == pytest.approx(value, abs=0.01)


def test_no_score_beats_the_oracle_and_the_band_is_round_the_curve():
    table = tabulate(made_up(400, deferred=0.1, cloud=0.9), "min_margin", REMOTE)
    _, oracle = measures.oracle_curve(table)
    _, quality = measures.quality_curve(table)
    low, high = measures.quality_band(table, resamples=60)
    assert (oracle >= quality - 1e-9).all()
    assert oracle.max() > quality.max()
    assert ((low <= quality + 0.005) & (quality <= high + 0.005)).all()
    assert (high - low)[50] == pytest.approx(4 * (0.9 * 0.1 / 400) ** 0.5, rel=0.4)


def test_what_a_threshold_does_is_counted():
    found = measures.outcome(TABLE, 2.0)
    assert (found.rows, found.kept, found.errors, found.needless) == (6, 3, 1, 1)
    assert found.sent == (pytest.approx(0.5), interval(3, 6))
    assert found.risk == (pytest.approx(1 / 3), interval(1, 3))
    assert (found.edge, found.cloud) == (pytest.approx(4 / 6), pytest.approx(4 / 6))
    nothing = measures.outcome(Table(SCORES, RIGHT, None), 9.0)
    assert (nothing.kept, nothing.risk, nothing.quality, nothing.cloud) == (0, None, None, None)


def test_every_score_that_the_rows_allow_is_measured():
    """Catches a score of classes that is given for answers of several tokens."""
    found = measures.worths(made_up(300), None)
    assert {each.name for each in found} >= {"min_margin", "mean_margin", "min_logprob", "mean_entropy"}
    assert not {each.name for each in found} & {"class_margin", "class_probability", "deferral"}
    assert found[0].name in ("min_margin", "mean_margin")
    assert [each.area for each in found] == sorted(each.area for each in found)


def test_calibration_brings_what_is_said_to_what_is_right():
    """Catches confidences of the wrong sign, and deferral answers among them."""
    rows = made_up(2000, deferred=0.2)
    policy = calibrate(rows, Share(0.4, 0.95), "min_margin", REMOTE, data="d", data_hash="h")
    fresh = made_up(2000, seed=5, deferred=0.2)
    before, after = measures.raw_confidence(fresh, policy), measures.fitted_confidence(fresh, policy)
    assert sum(entry.size for entry in after.bins) == sum(row.answer != REMOTE for row in fresh)
    assert after.error < 0.04
    # All answers have the probability exp(-0.3).
    share = np.mean([row.right for row in fresh if row.answer != REMOTE])
    assert before.error == pytest.approx(abs(share - math.exp(-0.3)))
    assert measures.raw_confidence([row for row in fresh if row.answer == REMOTE], policy) is None
