"""The settings of a simulated system."""

import pytest

from shadowpeft.errors import ConfigError
from shadowpeft.simulate.settings import System


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"robots": "0"}, "robots must be whole numbers, separated by commas, each 1 or more; got '0'"),
        ({"robots": "10,many"}, "got '10,many'"),
        ({"robots": ""}, "robots must be whole numbers"),
        ({"per_minute": 0}, "per_minute must be from 0.001 to 1000000.0"),
        ({"per_minute": float("inf")}, "per_minute must be from 0.001 to 1000000.0"),
        ({"robots": "1,1000001"}, "robots must be 1,000,000 at most, got 1000001"),
        ({"round_trip_ms": float("inf")}, "round_trip_ms must be"),
        ({"up_mbit": 1e-9}, "up_mbit must be"),
        ({"requests": 5}, "requests must be a whole number, 100 or more, got 5"),
        ({"lost": 1.0}, "lost must be"),
        ({"away": 1.0}, "away must be"),
        ({"cloud_slots": 0}, "cloud_slots must be"),
        ({"cloud_price": -1.0}, "cloud_price must be"),
        ({"edge_seconds": 0.0}, "edge_seconds must be above 0"),
        ({"on_cloud_failure": "wait"}, "on_cloud_failure must be 'answer' or '503', got 'wait'"),
    ],
)
def test_what_no_system_can_be_is_refused(settings, said):
    with pytest.raises(ConfigError) as caught:
        System(**settings)
    assert said in str(caught.value)


def test_a_fleet_named_twice_is_simulated_once():
    assert System(robots="10,1,10").fleets() == [10, 1]


def test_hours_and_transfer_follow_from_the_settings():
    system = System(requests=1200, per_minute=2.0, up_mbit=8.0, down_mbit=16.0, request_kb=100, answer_kb=2)
    assert system.hours(10) == pytest.approx(1.0)
    assert system.transfer() == pytest.approx((0.1, 0.001))
