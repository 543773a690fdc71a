"""The report of a simulation."""

import re

import pytest
from helpers.answered import REMOTE, made_up
from matplotlib import pyplot as plt

from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Share
from shadowpeft.simulate import plots, report, strategies
from shadowpeft.simulate.report import lead_of, write_report
from shadowpeft.simulate.run import simulate
from shadowpeft.simulate.settings import System
from shadowpeft.simulate.strategies import strategies_of

ROWS = made_up(100, deferred=0.1)
POLICY = calibrate(made_up(400, seed=1, deferred=0.1), Share(0.4, 0.95), "min_margin", REMOTE, "d", "ab" * 32)


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch):
    monkeypatch.setattr(plots, "as_data", lambda figure: plt.close(figure) or "data:,")


def simulated(**settings):
    system = System(**{"robots": "1,5", "requests": 300, "seeds": 1, **settings})
    return simulate(system, strategies_of(ROWS, POLICY, system))


def written(tmp_path, **settings):
    result = simulated(**settings)
    write_report(result, tmp_path)
    text, page = ((tmp_path / f"simulation.{kind}").read_text(encoding="utf-8") for kind in ("md", "html"))
    return result, text, page


def cells(text, name, nth=0):
    line = re.findall(rf"^\| {re.escape(name)} \|.*$", text, re.MULTILINE)[nth]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_fleet_has_its_table_and_pictures(tmp_path):
    result, text, page = written(tmp_path)
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## One robot", "## 5 robots", "## A growing fleet", "## One robot, every row once",
        "## What was assumed",
    ]  # fmt: skip
    assert page.count("<img") == 5
    ours = result.mean(5, strategies.POLICY)
    found = cells(text, "policy", 1)
    assert (found[1], found[3]) == (f"{100 * ours.right:.1f} %", f"{100 * ours.sent:.1f} %")
    assert (found[7], found[10]) == (f"{ours.mean:.3f}", f"{ours.p99:.3f}")


def test_the_first_sentence_compares_the_largest_fleet():
    result = simulated()
    ours, cloud = result.mean(5, strategies.POLICY), result.mean(5, strategies.CLOUD_ONLY)
    assert lead_of(result).startswith(
        f"With 5 robots the policy sends {100 * ours.sent:.1f} % of the requests to the cloud and answers "
        f"{100 * ours.right:.1f} % rightly, where the cloud alone answers {100 * cloud.right:.1f} %."
    )
    assert f"1,000 requests cost {ours.cost:.4g} in place of {cloud.cost:.4g}." in lead_of(result)


def test_an_overload_has_no_seconds(tmp_path):
    """Catches figures of a queue that grows without end, which would be those of the simulation's length."""
    _, text, page = written(tmp_path, cloud_seconds=30.0, cloud_slots=3, per_minute=2.0)
    assert cells(text, strategies.CLOUD_ONLY, 1)[7:11] == ["overloaded"] * 4
    assert "overloaded" not in cells(text, strategies.CLOUD_ONLY, 0)
    assert "With 5 robots requests come too fast for the cloud alone." in text
    assert text.splitlines()[2].startswith("With one robot the policy sends")
    assert "Overloaded: requests come faster" in page


def test_too_few_requests_are_told_of_the_fleet_that_they_are_too_few_for(tmp_path):
    """Catches waits of queues that have not filled yet, given as those of the fleet."""
    _, text, _ = written(tmp_path, edge_seconds=15.0, robots="1,50")
    one, fleet = (text.index(head) for head in ("## One robot", "## 50 robots"))
    assert "Too few requests" not in text[one:fleet]
    assert re.search(r"Too few requests for the queues to settle.*--requests 3\d{3} or more", text[fleet:])


@pytest.mark.parametrize(
    ("hours", "said"), [(1.0, "1.0 hours"), (0.5, "30.0 minutes"), (0.005, "18 seconds")]
)
def test_time_is_told_in_a_unit_that_fits(hours, said):
    """Catches a simulation of 0.0 minutes."""
    assert report._hours(hours) == said


def test_one_fleet_has_no_growth(tmp_path):
    _, text, _ = written(tmp_path, robots="5")
    assert "growing" not in text


def test_all_rows_once_are_compared_with_the_cloud_alone(tmp_path):
    _, text, _ = written(tmp_path, edge_seconds=0.1, cloud_seconds=1.0, round_trip_ms=0.0, jitter_ms=0.0,
                         request_kb=0.0, answer_kb=0.0)  # fmt: skip
    assert cells(text, strategies.CLOUD_ONLY, -1)[1:3] == ["100.0", "1.00"]
    assert cells(text, strategies.EDGE_ONLY, -1)[1:3] == ["10.0", "0.10"]


def test_all_settings_are_stated(tmp_path):
    _, text, _ = written(tmp_path, cloud_seconds=1.5)
    assert cells(text, "cloud_seconds")[1] == "1.5"
    assert cells(text, "edge_seconds")[1] == "as measured"
    assert cells(text, "mean seconds of one of the cloud")[1] == "1.5"
