"""How long a simulation must be."""

from dataclasses import replace

import pytest
from helpers.simulated import answers, near, strategy

from shadowpeft.simulate.arrivals import Outages, arrivals
from shadowpeft.simulate.fleet import Fleet
from shadowpeft.simulate.measures import figures_of
from shadowpeft.simulate.run import Result
from shadowpeft.simulate.settling import requests_for, too_short

SYSTEM = near(requests=100)
EDGE = strategy([1], answers([True], 15.0), None, "edge")
CLOUD = strategy([0], None, answers([True], 15.0), "cloud")


def figures(how, robots=1, system=SYSTEM):
    coming = arrivals(system, robots, 1, 0)
    return figures_of(system, how, coming, Fleet(system, how, coming, Outages([], [])).run())


def test_a_fleet_needs_as_many_requests_as_its_queues_take_to_settle():
    """Half a load: 0.5 / (1 - sqrt(0.5))^2 = 5.83 requests to settle, and the slots that are to fill."""
    edge = replace(figures(EDGE), offered=0.0, edge_load=0.5)
    assert requests_for(SYSTEM, edge, 1) == pytest.approx(10 * (0.5 + 5.828), abs=1)
    assert requests_for(SYSTEM, edge, 1000) == pytest.approx(10 * 1000 * (0.5 + 5.828), abs=10)
    cloud = replace(edge, offered=400.0, edge_load=0.0)
    assert requests_for(near(cloud_slots=800), cloud, 7) == pytest.approx(10 * (400 + 5.828), abs=1)


def test_a_simulation_that_is_too_short_understates_waiting():
    """Catches a measure of length that says nothing of what goes wrong."""
    long, short = near(requests=20_000), near(requests=2000)
    settled, begun = figures(EDGE, 100, long), figures(EDGE, 2000, short)
    # Pollaczek and Khinchine: half a load of equal times waits for half of one.
    assert settled.mean == pytest.approx(22.5, rel=0.03)
    assert begun.mean < 20
    assert requests_for(long, settled, 100) < 20_000 * 4
    assert requests_for(short, begun, 2000) > 2000 * 10


def test_what_is_overloaded_needs_no_length():
    """Waiting has no figure there, however long it is simulated."""
    one = replace(figures(CLOUD), offered=2.0)

    def needed(**found):
        return too_short(Result(SYSTEM, [CLOUD], {(1, "cloud"): [replace(one, **found)]}, []), 1)

    assert needed(offered=0.5) is None
    assert needed(offered=7.9) > 100
    assert needed(offered=8.0) is None
    assert needed(edge_load=1.0) is None
