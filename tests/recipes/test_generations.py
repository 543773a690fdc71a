"""The recipe that generates thousands of times, and its bound, run small."""

import json

import pytest
from helpers.recipes import run_apart


@pytest.mark.slow
def test_hundreds_of_generations_leave_memory_where_it_was():
    """Catches a generation that leaves a tensor, a cache or a record behind, also one that was broken off."""
    lines = [json.loads(line) for line in run_apart("generations/memory.py", "--count", 350).splitlines()]
    *points, last = lines
    assert [point["generations"] for point in points] == list(range(35, 351, 35))
    grown = last["grown"]
    assert grown["tensors"] == 0
    # Less than one object, and than two kilobytes, for each generation.
    assert grown["objects"] < 200
    assert grown["rss_mb"] < 0.6
