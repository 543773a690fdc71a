"""Queues, network, failures: single requests by hand, and whole queues beside what theory says of them."""

import math

import numpy as np
import pytest
from helpers.simulated import answers, near, strategy

from shadowpeft.simulate.answers import Answers
from shadowpeft.simulate.arrivals import Arrivals, Outages, arrivals, outages
from shadowpeft.simulate.fleet import CLOUD, INSTEAD, KEPT, NOBODY, Fleet, Log
from shadowpeft.simulate.settings import System

NONE = Outages(np.empty(0), np.empty(0))


def at(times, robots=None, rows=None, **more):
    """Requests at given times; nothing is left to chance."""
    count = len(times)
    given = {
        "times": np.array(times, float),
        "robots": np.array(robots or [0] * count),
        "rows": np.array(rows or [0] * count),
        "keeps": np.zeros(count),
        "jitters": np.zeros((count, 3)),
        "losses": np.ones((count, 3)),
        "pauses": np.ones((count, 3)),
    }
    return Arrivals(**{**given, **more})


def run(system, how, coming, away=NONE):
    return Fleet(system, how, coming, away).run()


def test_a_kept_answer_takes_the_edges_time():
    log = run(near(edge_scale=3.0), strategy([1], answers([True], 0.5), answers([True], 9)), at([5.0]))
    assert log.seconds.tolist() == [1.5]
    assert log.by.tolist() == [KEPT]
    assert log.calls == 0


def test_a_sent_request_takes_edge_network_and_cloud():
    """Catches a way that is counted twice or not at all."""
    system = System(
        robots="1", round_trip_ms=100, jitter_ms=10, up_mbit=8, down_mbit=2, request_kb=100, answer_kb=50,
        cloud_scale=2.0,
    )  # fmt: skip
    coming = at([5.0], jitters=np.array([[0.03, 9, 9]]))
    log = run(system, strategy([0], answers([False], 0.5), answers([True], 1.0)), coming)
    assert log.seconds[0] == pytest.approx(0.5 + 0.1 + 0.03 + 0.1 + 0.2 + 2.0)
    assert (log.by[0], log.calls, log.asked) == (CLOUD, 1, 2.0)
    # The slot is taken when the edge has answered and the request has come, and held for the answer alone.
    assert log.held == pytest.approx(np.array([[5.5 + 0.05 + 0.03 + 0.1, 5.5 + 0.05 + 0.03 + 0.1 + 2.0]]))


def test_without_an_edge_a_request_goes_to_the_cloud_at_once():
    log = run(near(), strategy([0], None, answers([True], 1.0)), at([5.0]))
    assert (log.seconds[0], log.by[0]) == (1.0, CLOUD)


def test_a_robot_answers_one_request_after_the_other():
    how = strategy([1], answers([True], 1.0), None)
    assert run(near(), how, at([0.0, 0.1, 5.0])).seconds == pytest.approx([1.0, 1.9, 1.0])
    assert run(near(), how, at([0.0, 0.1], robots=[0, 1])).seconds == pytest.approx([1.0, 1.0])


def test_a_request_that_waits_for_the_cloud_does_not_keep_its_robot():
    how = strategy([0, 1], answers([True, True], 1.0), answers([True, True], 10.0))
    assert run(near(), how, at([0.0, 0.5], rows=[0, 1])).seconds == pytest.approx([11.0, 1.5])


def test_requests_wait_for_a_slot_of_the_cloud():
    how = strategy([0], None, answers([True], 4.0))
    coming = at([0.0, 1.0, 2.0], robots=[0, 1, 2])
    assert run(near(cloud_slots=2), how, coming).seconds == pytest.approx([4.0, 4.0, 6.0])


def test_chance_keeps_where_the_strategy_leaves_it_to_chance():
    how = strategy([0.5], answers([True], 1.0), answers([True], 1.0))
    coming = at([0.0, 10.0], keeps=np.array([0.49, 0.5]))
    assert run(near(), how, coming).by.tolist() == [KEPT, CLOUD]


# Failures


def test_a_lost_try_is_made_again_after_a_pause():
    """Each lost try takes a round trip; the pauses are half of 0.25 and a quarter of 0.5 s."""
    system = System(robots="1", round_trip_ms=100, jitter_ms=0, request_kb=0, answer_kb=0, lost=0.5)
    losses, pauses = np.array([[0.4, 0.4, 0.6]]), np.array([[0.5, 0.25, 9.0]])
    log = run(
        system,
        strategy([0], None, answers([True], 1.0)),
        at([0.0], losses=losses, pauses=pauses, jitters=np.array([[9, 9, 0.03]])),
    )
    assert log.seconds[0] == pytest.approx(0.1 + 0.125 + 0.1 + 0.125 + 0.1 + 0.03 + 1.0)
    assert log.by[0] == CLOUD


@pytest.mark.parametrize(("rule", "by"), [("answer", INSTEAD), ("503", NOBODY)])
def test_after_three_lost_tries_the_rule_decides(rule, by):
    system = near(lost=0.5, on_cloud_failure=rule)
    coming = at([0.0], losses=np.zeros((1, 3)))
    log = run(system, strategy([0], answers([True], 1.0), answers([True], 1.0)), coming)
    assert (log.by[0], log.calls) == (by, 0)
    assert log.seconds[0] == pytest.approx(1.0 + 0.25 + 0.5)


def test_without_an_edge_nobody_answers_in_place_of_the_cloud():
    coming = at([0.0], losses=np.zeros((1, 3)))
    assert run(near(lost=0.5), strategy([0], None, answers([True], 1.0)), coming).by[0] == NOBODY


def test_a_robot_waits_for_a_silent_cloud_no_longer_than_it_should():
    """One that leaves the queue frees its place; one whose answer was begun stays, however long it takes."""
    how = strategy([0, 0], answers([True, True], 0.5), answers([True, True], 9.0))
    log = run(near(cloud_slots=1, upstream_timeout=6.0), how, at([0.0, 0.0, 5.2], robots=[0, 1, 2]))
    # The first is answered, the second leaves after 6 s, so that the third begins after 9.
    assert log.by.tolist() == [CLOUD, INSTEAD, CLOUD]
    assert log.seconds == pytest.approx([9.5, 6.5, 0.5 + 9.0 + 9.0 - 5.2])
    assert log.held == pytest.approx(np.array([[0.5, 9.5], [9.5, 18.5]]))
    assert log.asked == 27.0


def test_one_that_left_the_queue_does_not_ask_again():
    """As the gateway: a server that did not answer in time may be at work, so that another try adds to it."""
    how = strategy([0], None, answers([True], 50.0))
    log = run(near(cloud_slots=1, upstream_timeout=2.0), how, at([0.0, 0.0], robots=[0, 1]))
    assert log.by.tolist() == [CLOUD, NOBODY]
    assert log.seconds == pytest.approx([50.0, 2.0])


def test_slots_are_busy_between_two_times():
    held = np.array([[0.0, 4.0], [3.0, 9.0], [8.0, 30.0]])
    log = Log(np.zeros(3), np.zeros(3), held, 0.0)
    assert log.busy(2.0, 10.0) == pytest.approx((2 + 6 + 2) / 8)


def test_a_cloud_that_is_away_costs_the_time_to_connect():
    away = Outages(np.array([0.0]), np.array([12.0]))
    log = run(near(), strategy([0], answers([True], 1.0), answers([True], 1.0)), at([0.0]), away)
    # Tries at 1, 6.25 and 11.75 s, each given up after 5.
    assert (log.by[0], log.seconds[0]) == (INSTEAD, pytest.approx(16.75))


def test_a_short_patience_is_that_of_a_connection_too():
    """Tries of 2 s each with pauses of 0.25 and 0.5 s."""
    away = Outages(np.array([0.0]), np.array([99.0]))
    log = run(near(upstream_timeout=2.0), strategy([0], None, answers([True], 1.0)), at([0.0]), away)
    assert log.seconds[0] == pytest.approx(6.75)


def test_an_answer_ends_a_row_of_failures():
    """Catches a breaker that counts all failures ever: here are six, but two in a row at most."""
    how = strategy([0], answers([True], 0.1), answers([True], 1.0))
    coming = at([0.0, 10.0, 20.0], losses=np.array([[0.0, 0.0, 1.0]] * 3))
    assert run(near(lost=0.5), how, coming).by.tolist() == [CLOUD] * 3


def test_after_five_failures_a_robot_leaves_the_cloud_alone():
    """Catches a breaker that all robots share, and one that never opens."""
    away = Outages(np.array([0.0]), np.array([1000.0]))
    how = strategy([0], answers([True], 1.0), answers([True], 1.0))
    coming = at([0.0, 20.0, 40.0, 41.0], robots=[0, 0, 0, 1])
    log = run(near(), how, coming, away)
    assert log.by.tolist() == [INSTEAD] * 4
    # The fifth failure is the second request's second try, after which it pauses; the third does not ask.
    assert log.seconds == pytest.approx([16.75, 11.75, 1.0, 16.75])


# Theory


def test_waiting_for_slots_is_what_erlang_says():
    """A cloud with random service times is the queue M/M/c."""
    count, slots, load = 40_000, 4, 0.8
    random = np.random.default_rng(0)
    seconds = random.exponential(1.0, 4000)
    seconds /= seconds.mean()
    system = near(requests=count, per_minute=60 * load * slots, cloud_slots=slots, upstream_timeout=1e6)
    cloud = Answers(np.ones(4000, bool), seconds, np.zeros(4000, bool))
    log = run(system, strategy(np.zeros(4000), None, cloud), arrivals(system, 1, 4000, 0))
    offered = load * slots
    last = offered**slots / math.factorial(slots) / (1 - load)
    waits = last / (sum(offered**n / math.factorial(n) for n in range(slots)) + last)
    expected = waits / (slots * (1 - load))
    assert (log.seconds.mean() - 1.0) == pytest.approx(expected, rel=0.1)


def test_waiting_for_a_robot_is_what_pollaczek_and_khinchine_say():
    """A robot with equal service times is the queue M/D/1."""
    load = 0.7
    system = near(requests=40_000, per_minute=60 * load)
    log = run(system, strategy([1], answers([True], 1.0), None), arrivals(system, 1, 1, 0))
    assert log.seconds.mean() == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_all_requests_are_answered_once_whatever_fails():
    system = System(robots="20", requests=2000, per_minute=30, lost=0.1, away=0.2, away_minutes=0.2,
                    cloud_slots=2, upstream_timeout=2.0)  # fmt: skip
    coming = arrivals(system, 20, 10, 0)
    how = strategy([0, 1] * 5, answers([True] * 10, 0.2), answers([True] * 10, 0.3))
    log = run(system, how, coming, outages(system, float(coming.times[-1]), 20, 0))
    assert (log.seconds > 0).all()
    assert (log.by[how.kept[coming.rows] == 1] == KEPT).all()
    assert set(log.by[how.kept[coming.rows] == 0]) == {CLOUD, INSTEAD}
    assert log.calls >= (log.by == CLOUD).sum()
