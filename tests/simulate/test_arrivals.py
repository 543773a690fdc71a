"""What chance decides in a simulation."""

import numpy as np
import pytest

from shadowpeft.errors import ConfigError
from shadowpeft.simulate.arrivals import Outages, arrivals, outages
from shadowpeft.simulate.settings import System


def test_requests_come_as_often_as_stated():
    found = arrivals(System(requests=20_000, per_minute=3.0), robots=7, rows=50, seed=0)
    gaps = np.diff(found.times)
    assert gaps.mean() == pytest.approx(60 / 21, rel=0.03)
    # Of an exponential distribution mean and deviation are equal.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    assert set(found.robots) == set(range(7))


def test_every_row_is_asked_as_often_as_any_other():
    """Catches rows drawn one by one, whose shares would differ by chance."""
    found = arrivals(System(requests=1000), robots=2, rows=100, seed=0)
    assert (np.bincount(found.rows) == 10).all()
    assert found.rows[:100].tolist() != found.rows[100:200].tolist()


def test_a_seed_gives_the_same_requests_and_another_one_others():
    first, again, other = (arrivals(System(requests=100), 2, 10, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.times, again.times)
    assert np.array_equal(first.losses, again.losses)
    assert not np.array_equal(first.times, other.times)


def test_the_cloud_is_away_for_the_share_stated():
    system = System(away=0.2, away_minutes=1.0)
    seconds = 60 * 60 * 400.0
    found = outages(system, seconds, 1, seed=0)
    assert (found.ends - found.starts).sum() / seconds == pytest.approx(0.2, abs=0.01)
    assert (found.ends - found.starts).mean() == pytest.approx(60, rel=0.05)
    assert (found.starts[1:] > found.ends[:-1]).all()


def test_the_cloud_may_be_away_from_the_first_moment_on():
    system = System(away=0.2, away_minutes=1.0)
    first = [outages(system, 6000.0, 1, seed).is_away(0.0) for seed in range(400)]
    assert np.mean(first) == pytest.approx(0.2, abs=0.06)


def test_no_outage_without_a_share():
    assert len(outages(System(), 1e6, 1, 0).starts) == 0


def test_outages_without_number_are_refused():
    """Catches a run without end."""
    with pytest.raises(ConfigError, match=r"would have 10,000,000 outages, expected 1,000,000 at most"):
        outages(System(away=0.1, away_minutes=1e-3), 6e6, 1, 0)


def test_an_outage_has_a_beginning_and_an_end():
    found = Outages(np.array([10.0, 30.0]), np.array([20.0, 40.0]))
    times = [0, 9.9, 10, 19.9, 20, 30, 39.9, 40]
    assert [found.is_away(time) for time in times] == [False, False, True, True, False, True, True, False]
