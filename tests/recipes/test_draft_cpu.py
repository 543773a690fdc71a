"""The recipe that measures drafts on a CPU, run small."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.recipes import run

from shadowpeft import ShadowConfig
from shadowpeft.demo.run import load_base
from shadowpeft.embedded import SHADOW
from shadowpeft.pretrain import start
from shadowpeft.storage import shadow_folder
from shadowpeft.storage.base_facts import BaseFacts

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


def test_acceptance_is_by_position_over_all_texts() -> None:
    """Catches shares that are averaged over texts, and a text without a later position."""
    acceptance: Any = runpy.run_path(str(SCRIPT))["acceptance"]
    reports = [
        SimpleNamespace(drafted=[4, 2], accepted=[2, 1]),
        SimpleNamespace(drafted=[1], accepted=[1]),
        SimpleNamespace(drafted=[], accepted=[]),
    ]
    assert acceptance(reports) == [0.6, 0.5]


@pytest.mark.recipe
def test_the_recipe_measures_several_shadows(tmp_path: Path) -> None:
    """Catches a shadow that is not measured, a flag without effect, and adapters over one another."""
    base, small = load_base(), tmp_path / "small"
    shadow = start.fresh(base, ShadowConfig(shadow_layers=1), torch.float32)
    shadow_folder.save(shadow, BaseFacts.of(base), small, {})
    np.savez(tmp_path / "ids.npz", ids=np.arange(1000, dtype=np.uint16))
    words = [
        "--texts=1",
        "--tokens=4",
        "--threads=1",
        "--epochs=0.01",
        "--draft-vocabulary=500",
        "--accuracy=2",
    ]
    words += [
        "--drafts",
        "2",
        "3",
        "--shadows",
        str(SHADOW),
        str(small),
        "--adapter",
        str(tmp_path / "adapter"),
    ]
    words += ["--draft-steps", "1", "--prompts", str(tmp_path / "ids.npz")]
    lines = [json.loads(line) for line in run("draft_cpu/measure.py", *words).splitlines()]
    extra = ("taught", "accuracy")
    assert [(line["work"], line["shadow"], line["way"]) for line in lines if line["way"] not in extra] == [
        (work, shadow, way)
        for work in ("free text", "intents")
        for shadow in ("4 blocks", "1 block")
        for way in ("plain", "base", "2", "3")
    ]
    assert [line["way"] for line in lines if line["way"] in extra] == ["taught"] * 2 + ["accuracy"] * 2 + [
        "taught"
    ] * 2
    assert all(line["of_base"] == 1 for line in lines if line["way"] == "base")
    drafted = [line for line in lines if line["way"].isdigit()]
    assert all(len(line["acceptance"]) <= int(line["way"]) - 1 for line in drafted)
    assert all(line["acceptance"] for line in drafted if line["work"] == "free text")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {"4_blocks", "1_block"}
