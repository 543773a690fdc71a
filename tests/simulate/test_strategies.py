"""The strategies that a simulation compares."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.answered import REMOTE, made_up

from shadowpeft.errors import DataError
from shadowpeft.route.answered import tabulate
from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Share
from shadowpeft.route.measures import outcome
from shadowpeft.simulate import strategies
from shadowpeft.simulate.settings import System
from shadowpeft.simulate.strategies import strategies_of

ROWS = made_up(400, deferred=0.1)
CALIBRATION = made_up(400, seed=1, deferred=0.1)
POLICY = calibrate(CALIBRATION, Share(0.4, 0.95), "min_margin", REMOTE, "d", "ab" * 32)


def by_name(**more):
    return {each.name: each for each in strategies_of(ROWS, POLICY, System(), **more)}


def test_sent_and_right_are_those_of_the_calibrations_report():
    """Catches an edge's answer counted where the cloud's is given, and the other way round."""
    found = by_name()
    expected = outcome(tabulate(ROWS, POLICY.score, REMOTE), POLICY.threshold)
    assert found[strategies.POLICY].sent == pytest.approx(expected.sent[0])
    assert found[strategies.POLICY].right == pytest.approx(expected.quality)
    assert found[strategies.CLOUD_ONLY].right == pytest.approx(expected.cloud)
    assert found[strategies.EDGE_ONLY].right == pytest.approx(expected.edge)


def test_chance_sends_as_much_and_is_right_less_often():
    found = by_name()
    ours, chance = found[strategies.POLICY], found[strategies.RANDOM]
    assert chance.sent == pytest.approx(ours.sent)
    assert chance.right < ours.right


def test_the_deferral_answer_alone_sends_what_the_model_defers():
    remote = np.mean([row.answer == REMOTE for row in ROWS])
    assert by_name()[f"{REMOTE} alone"].sent == pytest.approx(remote)
    policy = replace(POLICY, deferral=None)
    assert not any("alone" in each.name for each in strategies_of(ROWS, policy, System()))


def test_a_small_model_has_its_own_policy_and_the_same_cloud():
    small = made_up(400, seed=0, shift=-1.0)
    small = [
        replace(row, expected=mine.expected, where=mine.where) for row, mine in zip(small, ROWS, strict=True)
    ]
    policy = calibrate(small, Share(0.2, 0.95), "min_margin", None, "d", "ab" * 32)
    # In another order than the data.
    found = by_name(small=small[::-1], small_policy=policy)
    assert found[strategies.SMALL].edge.right.tolist() == [row.right for row in small]
    assert found[strategies.SMALL].right == pytest.approx(np.mean([row.right for row in small]))
    assert found[strategies.SMALL_POLICY].sent == pytest.approx(0.2, abs=0.01)
    assert found[strategies.SMALL_POLICY].cloud is found[strategies.CLOUD_ONLY].cloud
    assert strategies.SMALL_POLICY not in by_name(small=small)


def test_a_small_models_deferral_answer_is_its_policys():
    """Catches its deferral answers counted as answers, and the edge's word for it taken for its own."""
    small = [replace(row, answer="ask") for row in ROWS]
    edge = by_name(small=small, small_policy=replace(POLICY, deferral="ask"))[strategies.SMALL].edge
    assert edge.defers.all()
    assert not by_name(small=small)[strategies.SMALL].edge.defers.any()


def test_another_cloud_answers_everything_itself():
    other = [replace(row, right=True, seconds=0.5) for row in ROWS]
    mixed = [replace(row, right=at < 40) for at, row in enumerate(ROWS)]
    found = by_name(other_cloud=mixed[::-1])[strategies.OTHER_CLOUD]
    assert found.cloud.right.tolist() == [at < 40 for at in range(len(ROWS))]
    found = by_name(other_cloud=other)[strategies.OTHER_CLOUD]
    assert (found.right, found.sent, found.edge) == (1.0, 1.0, None)
    assert (found.cloud.seconds == 0.5).all()


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="there are no rows to replay"):
        strategies_of([], POLICY, System())
