"""All simulations of a system."""

import json
from dataclasses import replace

import pytest
from helpers.answered import REMOTE, made_up

from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Share
from shadowpeft.simulate import strategies
from shadowpeft.simulate.run import ROWS, simulate, write_rows
from shadowpeft.simulate.settings import System
from shadowpeft.simulate.strategies import strategies_of

ROWS_OF_DATA = made_up(100, deferred=0.1)
POLICY = calibrate(made_up(400, seed=1, deferred=0.1), Share(0.4, 0.95), "min_margin", REMOTE, "d", "ab" * 32)
SYSTEM = System(robots="1,5", requests=400, seeds=2)


def simulated(system=SYSTEM):
    return simulate(system, strategies_of(ROWS_OF_DATA, POLICY, system))


def test_every_strategy_meets_every_fleet_and_seed(capsys):
    result = simulated()
    assert len(result.figures) == 2 * len(result.strategies)
    assert {len(several) for several in result.figures.values()} == {2}
    assert "simulated 1 robot\nsimulated 5 robots\n" in capsys.readouterr().err


def test_a_simulation_can_be_repeated_and_seeds_differ():
    result, again = simulated(), simulated()
    assert result.figures == again.figures
    first, second = result.figures[5, strategies.POLICY]
    assert first.mean != second.mean


def test_all_strategies_meet_the_same_requests_and_failures():
    """Catches chance drawn anew for each strategy, and outages that no strategy meets."""
    system = System(robots="5", requests=1000, seeds=2, lost=0.3, away=0.3, away_minutes=1.0)
    ours = next(
        each for each in strategies_of(ROWS_OF_DATA, POLICY, system) if each.name == strategies.POLICY
    )
    result = simulate(system, [ours, replace(ours, name="the same")])
    assert result.figures[5, strategies.POLICY] == result.figures[5, "the same"]
    calm = simulate(replace(system, away=0.0), [ours])
    assert result.mean(5, strategies.POLICY).instead > calm.mean(5, strategies.POLICY).instead + 0.05


def test_what_is_simulated_is_what_the_rows_say():
    """Each row is asked equally often, so that shares are the rows' own but for the warm-up."""
    result = simulated(System(robots="3", requests=4000, seeds=1))
    for each in result.strategies:
        found = result.mean(3, each.name)
        assert found.right == pytest.approx(each.right, abs=0.02)
        assert found.sent == pytest.approx(each.sent, abs=0.02)
        assert found.unanswered == 0


def test_rows_are_written_a_simulation_a_line(tmp_path):
    result = simulated(replace(SYSTEM, seed=7))
    write_rows(result, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / ROWS).read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4 * len(result.strategies)
    (one,) = [
        row for row in rows if (row["strategy"], row["robots"], row["seed"]) == (strategies.POLICY, 5, 8)
    ]
    assert one["mean"] == result.figures[5, strategies.POLICY][1].mean
