"""From answered rows to a policy."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.answered import REMOTE, made_up, true_risk

from shadowpeft.errors import DataError
from shadowpeft.route import calibrate as module
from shadowpeft.route.calibrate import calibrate, halves
from shadowpeft.route.goals import Prices, Risk, Share
from shadowpeft.route.intervals import upper_bound
from shadowpeft.route.policy import CostPromise, DeferPromise, RiskPromise
from shadowpeft.route.thresholds import certify

RISK = Risk(0.05, 0.95)


def policy_of(rows, goal=RISK, score="min_margin", deferral=None, seed=0):
    return calibrate(rows, goal, score, deferral, data="dev.jsonl", data_hash="cd" * 32, seed=seed)


def test_a_policy_says_what_it_rests_on():
    rows = made_up(1000, shift=3.0, deferred=0.1)
    policy = policy_of(rows, deferral=REMOTE)
    held = [rows[at] for at in halves(1000, 0).held]
    kept = [row for row in held if row.answer != REMOTE and min(row.tokens.margins) >= policy.threshold]
    assert (policy.counts.rows, policy.counts.fitted, policy.counts.held) == (1000, 500, 500)
    assert policy.counts.kept == len(kept) > 200
    assert policy.counts.errors == sum(not row.right for row in kept)
    assert policy.promise.bound == upper_bound(policy.counts.errors, len(kept), 0.95) <= 0.05
    decisions = [policy.decide(row.tokens, row.answer).route for row in rows]
    assert decisions.count("cloud") == policy.counts.sent
    assert (policy.model, policy.adapter, policy.deferral) == ("tiny", "run/adapter", REMOTE)


def test_the_promise_holds_in_95_of_100_calibrations():
    """Catches a threshold chosen on the rows that certify it, and a bound of the wrong side."""
    broken = certified = 0
    for seed in range(60):
        try:
            policy = policy_of(made_up(600, seed=seed, shift=3.0), seed=seed)
        except DataError:
            continue
        certified += 1
        broken += true_risk(policy.threshold, shift=3.0) > 0.05
    assert certified > 30
    assert broken <= 0.05 * certified


def test_the_halves_are_apart_and_the_fit_is_of_one():
    """Catches knots fitted to the rows that test the threshold."""
    fitted, held = halves(101, 3)
    assert sorted([*fitted, *held]) == list(range(101))
    assert not np.array_equal(fitted, halves(101, 4).fitted)
    rows = made_up(400)
    changed = [
        replace(row, right=not row.right) if at in set(halves(400, 0).held) else row
        for at, row in enumerate(rows)
    ]
    goal = Share(0.2, 0.95)
    assert policy_of(rows, goal).knots == policy_of(changed, goal).knots


def test_what_is_tested_does_not_depend_on_the_rows_that_test(monkeypatch):
    """Catches thresholds, or a start, chosen by a look at the testing half: no bound would hold then."""
    tested = []

    def note(thresholds, scores, wrong, risk, confidence):
        tested.append(thresholds)
        return certify(thresholds, scores, wrong, risk, confidence)

    monkeypatch.setattr(module, "certify", note)
    rows, held = made_up(600, shift=5.0), set(halves(600, 0).held)
    other = made_up(600, seed=1, shift=5.0)
    policy_of(rows)
    policy_of([other[at] if at in held else row for at, row in enumerate(rows)])
    assert tested[0] == tested[1]


def test_a_share_is_met_with_its_interval():
    policy = policy_of(made_up(1000, deferred=0.1), Share(0.3, 0.95), deferral=REMOTE)
    assert policy.counts.sent == 300
    assert isinstance(policy.promise, DeferPromise)
    assert policy.promise.low < 0.3 < policy.promise.high
    with pytest.raises(DataError, match=r"1\d\.\d % of the answers are the deferral answer or empty"):
        policy_of(made_up(1000, deferred=0.15), Share(0.1, 0.95), deferral=REMOTE)


def test_equal_scores_that_straddle_a_share_are_told():
    rows = [
        replace(row, tokens=replace(row.tokens, margins=[float(round(row.tokens.margins[0]))]))
        for row in made_up(400)
    ]
    with pytest.raises(
        DataError, match=r"have the score -1, so that the share sent can be 0\.0\d+ or 0\.3\d+"
    ):
        policy_of(rows, Share(0.2, 0.95))


def test_the_cheapest_policy_keeps_where_an_error_costs_less_than_the_cloud():
    policy = policy_of(made_up(4000, cloud=1.0), Prices(1, 20, 100))
    assert isinstance(policy.promise, CostPromise)
    # It keeps while P(error) * 100 < 20: at 1 / (1 + exp(2 margin + 2)) < 0.2.
    assert policy.threshold == pytest.approx(-0.3, abs=0.25)
    assert 1 < policy.promise.expected < 21
    with pytest.raises(DataError, match="costs least to send every request"):
        policy_of(made_up(400, shift=-5.0), Prices(1, 0.01, 100))


def test_wrong_answers_of_the_cloud_cost_too():
    """Catches a cloud that is taken to be always right although its answers are known."""
    good, bad = (policy_of(made_up(2000, cloud=share), Prices(1, 20, 100)) for share in (1.0, 0.6))
    assert bad.threshold < good.threshold
    assert bad.promise.expected > good.promise.expected


def test_the_deferral_answer_alone_is_a_policy():
    policy = policy_of(made_up(2000, shift=6.0, deferred=0.2), score="deferral", deferral=REMOTE)
    assert policy.threshold == 1
    assert isinstance(policy.promise, RiskPromise)
    assert policy.counts.sent == pytest.approx(400, abs=60)
    assert policy.decide(made_up(1)[0].tokens, "stop").error_probability == policy.knots[0][1] > 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (made_up(117), "a risk of 5 % at 95 % confidence takes 118 rows or more, .* got 117"),
        (made_up(118, deferred=0.2), "needs at least 59 kept answers .* holds 4.; give about 1.. rows"),
        (made_up(200, shift=-4.0), "no number of rows would do, since"),
        (
            made_up(150, shift=2.5),
            r"cannot be certified: .* it takes \d+ kept answers; give about [\d,]+ rows",
        ),
        ([replace(row, right=True) for row in made_up(300)], "all 150 answers .* are right"),
        ([replace(row, right=False) for row in made_up(300)], "all 150 answers .* are wrong"),
        ([replace(row, answer=REMOTE) for row in made_up(300)], "got none that is not the deferral answer"),
        ([replace(row, tokens=made_up(1)[0].tokens) for row in made_up(300)], "have the same score"),
        ([], "takes 118 rows or more"),
    ],
)
def test_what_cannot_be_promised_is_one_sentence(rows, message):
    with pytest.raises(DataError, match=message) as caught:
        policy_of(rows, deferral=REMOTE)
    assert "\n" not in str(caught.value)
