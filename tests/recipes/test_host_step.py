"""The recipe that measures what a step takes the host, run small."""

import json

import pytest
from helpers.recipes import ROOT, run


@pytest.mark.slow
def test_the_recipe_measures_two_versions_side_by_side() -> None:
    """Catches a recipe that no longer runs, and a way that is missing or takes no time."""
    small = ("--blocks", 2, "--width", 16, "--rounds", 2, "--beside", ROOT / "src")
    rows = {row["way"]: row for row in map(json.loads, run("bench/host_step.py", *small).splitlines())}
    assert list(rows) == [
        "base", "attached", "crossed", "launched", "shadow",
        "boundary", "crossing", "launch", "attached / base", "launched / base",
    ]  # fmt: skip
    for way in ("base", "attached", "crossed", "launched", "shadow"):
        assert rows[way]["this"] > 0
        assert rows[way]["beside"] > 0
        assert rows[way]["ratio"] > 0
