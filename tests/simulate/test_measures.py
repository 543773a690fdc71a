"""The figures of a simulation, beside what a hand counts."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from helpers.simulated import answers, near, strategy

from shadowpeft.simulate.answers import Answers
from shadowpeft.simulate.arrivals import arrivals
from shadowpeft.simulate.fleet import CLOUD, INSTEAD, KEPT, NOBODY, Log
from shadowpeft.simulate.measures import figures_of, mean_of, once, row_of
from shadowpeft.simulate.settings import System

# Rows: right at the edge, right in the cloud, a deferral answer.
EDGE = Answers(np.array([1, 0, 1, 0], bool), np.array([0.1, 0.2, 0.3, 0.4]), np.array([0, 0, 1, 0], bool))
CLOUD_ANSWERS = answers([1, 1, 0, 0], 2.0)
HOW = strategy([1, 0, 0, 1], EDGE, CLOUD_ANSWERS)


def log_of(by, seconds=None, **more):
    given = {"held": np.empty((0, 2)), "asked": 0.0, **more}
    return Log(np.arange(len(by)) + 1.0 if seconds is None else seconds, np.array(by), **given)


def figures(system, by, rows, seconds=None, how=HOW, **more):
    """Figures of given requests, behind as many as the warm-up takes."""
    count = len(by)
    coming = arrivals(system, 1, 4, 0)
    first = len(coming) - count
    assert first == len(coming) // 10
    coming.rows[first:] = rows
    waits = np.full(len(coming), 99.0)
    waits[first:] = np.arange(count) + 1.0 if seconds is None else seconds
    log = log_of([NOBODY] * first + by, waits, **more)
    return figures_of(system, how, coming, log), coming


def test_shares_are_what_a_hand_counts():
    """Catches a wrong answer of the cloud that counts as one of the edge, and a warm-up that counts."""
    by = [KEPT, KEPT, CLOUD, CLOUD, INSTEAD, NOBODY, CLOUD, CLOUD, KEPT] * 10
    rows = [0, 3, 1, 3, 0, 0, 2, 0, 2] * 10
    found, _ = figures(near(requests=100), by, rows)
    # Right: KEPT 0, CLOUD 1, INSTEAD 0, CLOUD 0, KEPT 2.
    assert found.right == pytest.approx(5 / 9)
    assert found.sent == pytest.approx(6 / 9)
    assert found.unanswered == pytest.approx(1 / 9)
    assert found.instead == pytest.approx(1 / 9)
    assert found.false_keeps == pytest.approx(1 / 9)
    # Row 0 three times; row 2 is a deferral answer, which is sent with reason.
    assert found.false_deferrals == pytest.approx(3 / 9)


def test_waiting_is_that_of_the_answers():
    by = [KEPT] * 89 + [NOBODY]
    found, _ = figures(near(requests=100), by, [0] * 90, np.array([*range(1, 90), 1000], float))
    assert found.mean == pytest.approx(45.0)
    assert found.p50 == pytest.approx(45.0)
    assert found.p95 == pytest.approx(np.quantile(np.arange(1, 90), 0.95))
    assert found.p99 == pytest.approx(np.quantile(np.arange(1, 90), 0.99))


def test_nothing_answered_has_no_time():
    found, _ = figures(near(requests=100), [NOBODY] * 90, [0] * 90)
    assert np.isnan(found.mean)
    assert row_of("policy", 1, 0, found)["p99"] is None


def test_loads_are_of_the_time_in_which_requests_are_counted():
    """Catches the time in which the cloud fills, and in which it empties, when nothing comes any more."""
    system = near(requests=100, per_minute=6.0, edge_scale=2.0)
    times = arrivals(system, 1, 4, 0).times
    held = np.array([[times[10] - 7.0, times[10] + 5.0], [times[-1] - 4.0, times[-1] + 100.0]])
    found, coming = figures(system, [CLOUD] * 90, [0] * 90, held=held, asked=50.0)
    assert found.offered == pytest.approx(50 / coming.times[-1])
    assert found.cloud_load == pytest.approx((5 + 4) / (times[-1] - times[10]))
    assert found.edge_load == pytest.approx(0.25 * 2 * 6 / 60)


@pytest.mark.parametrize(
    ("settings", "offered", "overloaded"),
    [({"cloud_slots": 2}, 1.99, False), ({"cloud_slots": 2}, 2.0, True), ({"edge_scale": 40.0}, 0.0, True)],
)
def test_what_comes_faster_than_it_is_answered_is_an_overload(settings, offered, overloaded):
    system = near(requests=100, per_minute=6.0, **settings)
    span = arrivals(system, 1, 4, 0).times[-1]
    found, _ = figures(system, [CLOUD] * 90, [0] * 90, asked=offered * span * (1 + 1e-12))
    assert found.is_overloaded(system) is overloaded


def test_a_price_is_of_edge_cloud_rent_and_bytes():
    system = System(robots="1", requests=100, edge_price=2.0, cloud_price=30.0, slot_hour_price=7.0,
                    cloud_slots=3, gigabyte_price=5.0, request_kb=900.0, answer_kb=100.0)  # fmt: skip
    found, coming = figures(system, [CLOUD] * 90, [0] * 90, held=np.zeros((40, 2)))
    rent = 7.0 * 3 * coming.times[-1] / 3600 / 100 * 1000
    assert found.cost == pytest.approx(2.0 + 30.0 * 0.4 + rent + 5.0 * 40 * 1e-3 / 100 * 1000)


def test_who_has_no_edge_or_no_cloud_does_not_pay_for_it():
    system = System(robots="1", requests=100, edge_price=2.0, cloud_price=0.0, slot_hour_price=7.0)
    cloud, _ = figures(system, [CLOUD] * 90, [0] * 90, how=strategy([0] * 4, None, CLOUD_ANSWERS))
    edge, _ = figures(system, [KEPT] * 90, [0] * 90, how=strategy([1] * 4, EDGE, None))
    assert edge.cost == 2.0
    assert cloud.cost > 0
    assert cloud.false_deferrals == 0


def test_a_mean_is_of_each_figure():
    one, _ = figures(near(requests=100), [KEPT] * 90, [0] * 90)
    other, _ = figures(near(requests=100), [KEPT] * 90, [3] * 90)
    mean = asdict(mean_of([one, other]))
    assert mean["right"] == pytest.approx(0.5)
    assert mean["p50"] == one.p50


def test_all_rows_once_take_edge_network_and_cloud():
    system = System(robots="1", round_trip_ms=80, jitter_ms=20, request_kb=0, answer_kb=0, edge_scale=2.0)
    found = once(system, HOW)
    assert found.seconds == pytest.approx(2 * 1.0 + 2 * (0.1 + 2.0))
    assert (found.right, found.sent) == (0.5, 0.5)
    slower = replace(system, cloud_scale=3.0, request_kb=1250.0, answer_kb=6250.0)
    assert once(slower, HOW).seconds == pytest.approx(2 * 1.0 + 2 * (0.1 + 1.0 + 1.0 + 3 * 2.0))
    assert once(system, strategy([1] * 4, EDGE, None)).seconds == pytest.approx(2.0)
    assert once(system, strategy([0] * 4, None, CLOUD_ANSWERS)).seconds == pytest.approx(4 * 2.1)
