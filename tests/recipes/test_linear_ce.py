"""The recipe that measures the loss of a frozen head, run small."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "linear_ce" / "measure.py"
SMALL = ["--tokens=40", "--width=16", "--vocab=300", "--rounds=2", "--labelled=0.5"]


def test_the_recipe_measures(monkeypatch, capsys):
    """Runs recipes/linear_ce small: every line is complete."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *SMALL, "--ways=plain,swept"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["way"] for line in lines] == ["plain", "swept"]
    assert all(len(line["errors"]) == 3 and line["ms"] > 0 for line in lines)


def test_an_unknown_way_is_named(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *SMALL, "--ways=plane"])
    with pytest.raises(SystemExit, match="unknown way 'plane'"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
