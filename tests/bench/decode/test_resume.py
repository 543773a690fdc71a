"""A run that was cut off goes on where it stopped."""

import pytest

from shadowpeft.bench.decode.resume import Earlier
from shadowpeft.bench.decode.timings import CUT_OFF

FACTS = {"device": "d", "commit": "c", "shape": "8b", "way": "graph", "rounds": 2, "command": "x"}


def row(**changes) -> dict:
    return {**FACTS, "name": "base", "status": "ok", "samples": [[1.0], [1.0]], "run": "r", **changes}


@pytest.mark.parametrize(
    ("changes", "is_finished"),
    [
        ({}, True),
        ({"command": "another"}, True),
        ({"status": "failed: ValueError", "samples": []}, True),
        ({"status": "out of memory", "samples": [[1.0]]}, True),
        ({"status": CUT_OFF, "samples": []}, False),
        ({"samples": [[1.0]]}, False),
        ({"name": "lora"}, False),
        ({"commit": "another"}, False),
        ({"way": "generate"}, False),
    ],
)
def test_what_is_finished(changes, is_finished):
    """Catches a method that is left out although it was cut off, or was measured elsewhere."""
    found = Earlier([row(**changes)]).finished(FACTS, "base")
    assert found == (row(**changes) if is_finished else None)


def test_the_last_one_counts():
    assert Earlier([row(run="1"), row(run="2"), row(samples=[])]).finished(FACTS, "base") == row(run="2")
    assert Earlier([]).finished(FACTS, "base") is None


def test_a_measurement_keeps_the_base_of_its_own_run():
    """Catches a ratio that is lost, or is one between two processes."""
    rows = [row(run="1"), row(run="1", name="lora"), row(run="2"), row(run="1", way="generate")]
    earlier = Earlier([*rows, {"run": "1", "name": "base"}])
    assert earlier.with_their_bases(FACTS, rows[1:2]) == rows[:2]
    assert earlier.with_their_bases(FACTS, [rows[1], rows[2]]) == [rows[0], rows[2], rows[1]]
    assert earlier.with_their_bases(FACTS, []) == []
