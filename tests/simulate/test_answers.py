"""The rows that a simulation replays."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from helpers.answered import REMOTE, made_up

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.route.answered import Answerer
from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Share
from shadowpeft.route.scores import TokenScores
from shadowpeft.simulate.answers import answers_of, cloud_of, kept_of, matched, seconds_of

ROWS = made_up(200, deferred=0.1)
POLICY = calibrate(made_up(400, seed=1, deferred=0.1), Share(0.4, 0.95), "min_margin", REMOTE, "d", "ab" * 32)


def test_rows_become_columns():
    """Catches a column of the edge read as the cloud's."""
    edge, cloud = answers_of(ROWS, None, "edge", REMOTE), cloud_of(ROWS, None)
    assert edge.right.tolist() == [row.right for row in ROWS]
    assert cloud.right.tolist() == [row.cloud_right for row in ROWS]
    assert (edge.seconds == 0.01).all()
    assert (cloud.seconds == 0.04).all()
    assert edge.defers.tolist() == [row.answer == REMOTE for row in ROWS]
    assert not cloud.defers.any()


def test_rows_without_seconds_take_those_of_measured_ones_in_turn():
    assert seconds_of([None, 0.1, None, 0.3, None], None, "edge").tolist() == [0.1, 0.1, 0.3, 0.3, 0.1]


def test_given_seconds_stand_in_for_measured_ones():
    assert seconds_of([None, 0.1], 2.0, "edge").tolist() == [2.0, 2.0]


def test_unknown_seconds_are_refused():
    with pytest.raises(ConfigError, match=r"no row says how long the cloud's answer took.*--cloud-seconds"):
        seconds_of([None, None], None, "cloud")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_seconds_that_are_none_are_refused(value):
    with pytest.raises(DataError, match=f"the edge's seconds must be numbers above 0, got {value:g}"):
        seconds_of([0.1, value], None, "edge")


def test_a_truth_value_is_no_time():
    with pytest.raises(DataError, match="got true or false"):
        seconds_of([0.1, True], None, "edge")


def test_an_unknown_cloud_is_refused():
    rows = [*ROWS[:3], replace(ROWS[3], cloud_right=None)]
    with pytest.raises(DataError, match=r"dev.jsonl:4: it is not known whether the cloud's answer is right"):
        cloud_of(rows, None)


def test_what_is_kept_is_what_the_policy_decides():
    kept = kept_of(ROWS, POLICY)
    assert kept.tolist() == [POLICY.decide(row.tokens, row.answer).route == "edge" for row in ROWS]
    assert 0 < kept.mean() < 1


def test_an_answer_without_a_token_is_sent_whatever_the_score():
    """Catches an empty answer that the score `deferral` takes for a sure one; the gateway sends it."""
    policy = replace(POLICY, score="deferral", threshold=1.0)
    rows = [replace(ROWS[0], answer=text, tokens=TokenScores((-0.1,) * len(text))) for text in ("yes", "")]
    assert kept_of(rows, policy).tolist() == [True, False]
    assert [policy.decide(row.tokens, row.answer).route for row in rows] == ["edge", "cloud"]
    assert answers_of(rows, None, "edge", REMOTE).defers.tolist() == [False, True]


def test_answers_of_several_models_are_refused():
    """Catches a look at the first row alone."""
    rows = [*ROWS[1:], replace(ROWS[0], by=Answerer("other"))]
    with pytest.raises(DataError, match=r"expected the answers of one model, got those of tiny .* and other"):
        kept_of(rows, POLICY)
    with pytest.raises(DataError, match="expected the answers of one model"):
        matched(rows, ROWS, "the small model")


def test_a_policy_of_another_model_is_warned_of():
    """Catches the policies of edge and small model swapped, where no adapter's hash tells them apart."""
    rows = [replace(row, by=Answerer("small")) for row in ROWS]
    with pytest.warns(UserWarning, match="calibrated on answers of tiny, and the rows are answers of small"):
        kept_of(rows, POLICY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept_of(ROWS, POLICY)
        kept_of(ROWS, replace(POLICY, adapter_hash=None))


def test_another_adapters_policy_is_refused():
    rows = [replace(row, by=replace(row.by, adapter_hash="cd" * 32)) for row in ROWS]
    with pytest.raises(ConfigError, match="calibrated for the adapter run/adapter"):
        kept_of(rows, POLICY)


def test_other_answers_are_matched_by_their_rows():
    """Catches rows taken by their position."""
    order = np.random.default_rng(0).permutation(len(ROWS))
    others = [replace(ROWS[at], answer=f"other {at}") for at in order]
    assert [row.answer for row in matched(others, ROWS, "the small model")] == [
        f"other {at}" for at in range(len(ROWS))
    ]


def test_other_rows_are_refused():
    lacks = r"the small model must answer the same rows.*lacks 1 of 200, such as dev.jsonl:1, and has .*:2"
    with pytest.raises(DataError, match=lacks):
        matched(ROWS[1:], ROWS, "the small model")
    other = [replace(ROWS[0], expected="something else"), *ROWS[1:]]
    with pytest.raises(DataError, match=r"the right answer to dev.jsonl:1 is .* there and 'something else'"):
        matched(other, ROWS, "the small model")


def test_rows_that_are_answered_twice_are_refused():
    """Catches the last of several answers taken for the row's."""
    twice = [*ROWS, replace(ROWS[3], answer="another")]
    with pytest.raises(DataError, match=r"the small model must answer each row once.* dev.jsonl:4 2 times"):
        matched(twice, ROWS, "the small model")
    with pytest.raises(DataError, match="the data must answer each row once"):
        matched(ROWS, twice, "the small model")
