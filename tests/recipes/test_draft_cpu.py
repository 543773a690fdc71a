"""The recipe that measures drafts on a CPU, run small."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "draft_cpu" / "measure.py"


@pytest.mark.slow
def test_the_recipe_measures(monkeypatch, capsys, tmp_path):
    """Runs recipes/draft_cpu small: every line is complete, and the trained adapter is kept."""
    small = ["--texts=1", "--tokens=6", "--threads=1", "--epochs=0.01", f"--adapter={tmp_path / 'adapter'}"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    ways = ["plain", "base", "1", "2", "3", "4", "auto"]
    assert [(line["work"], line["way"]) for line in lines] == [
        (work, way) for work in ("free text", "intents") for way in ways
    ]
    assert all(line["ms"] > 0 and line["cpu_ms"] > 0 and line["tokens"] for line in lines)
    assert all(line["speedup"] == 1 for line in lines if line["way"] == "plain")
    assert (tmp_path / "adapter").is_dir()
