"""The recipe that measures drafts on a GPU, run small and on a CPU."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "recipes" / "draft_gpu" / "measure.py"


@pytest.mark.slow
def test_the_recipe_measures(monkeypatch, tmp_path):
    """Runs recipes/draft_gpu small: every line is complete, and drafts write what plain decoding writes."""
    small = ["--shape=tiny", "--device=cpu", "--dtype=float32", "--context=20", "--texts=2", "--tokens=12"]
    ways = ["--drafts", "2", "4v", "auto", "--vocabulary", "50", "--modes", "eager", "static", "called"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *small, *ways, "--output", str(tmp_path)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    rows, texts = (
        [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        for name in ("rows.jsonl", "texts.jsonl")
    )
    assert len(rows) == 3 * 5
    assert len(texts) == 3 * len(rows)
    assert {row["way"] for row in rows} == {"generate", "static", "called"}
    assert all(row["identical"] == 2 for row in rows if row["method"] == "shadow")
    assert all(row["ms_per_token"] > 0 and row["tokens"] == 24 for row in rows)
    assert all(row["tokens_per_round"] > 1 and row["acceptance"] for row in rows if row["draft_tokens"])
