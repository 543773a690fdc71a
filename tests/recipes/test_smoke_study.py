"""What `make study-smoke` runs."""

import json
import os
from pathlib import Path

import pytest
import yaml
from helpers.noted_cells import called, go
from helpers.recipes import ROOT, run

from shadowpeft import cli
from shadowpeft.compare.study import Study
from shadowpeft.embedded import MODEL

CONFIG = ROOT / "recipes" / "compare" / "smoke.yaml"


def test_the_smoke_study_is_planned_and_its_data_fit(tmp_path):
    """Catches settings that are refused, data that are too few, and another number of cells.

    The cells are noted and not run; `test_the_smoke_study` runs them.
    """
    run("compare/smoke_data.py", tmp_path / "data")
    words = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    assert ROOT / words["model"] == MODEL
    folders = {"data_dir": str(tmp_path / "data"), "output": str(tmp_path / "smoke")}
    study = Study(**{**words, "model": str(MODEL), **folders})
    result = go(study)
    assert (result.cells, result.done, result.failed, result.missing) == (20, 20, {}, [])
    assert len(called(study)) == 20


def processor_seconds() -> float:
    """Count what this process and its children that have ended took of all cores."""
    return sum(os.times()[:4])


@pytest.mark.recipe
@pytest.mark.timeout(900)  # minutes where the cores are free; on cores that others use, several times as long
def test_the_smoke_study(tmp_path, capsys):
    """Run what `make study-smoke` runs: a study on a real model, from the data to the plots, in five minutes.

    It is the processor's time that counts: other work on the same cores does not change it.
    """
    began = processor_seconds()
    run("compare/smoke_data.py", tmp_path / "data")
    folders = [
        "--model",
        str(MODEL),
        "--data-dir",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "smoke"),
    ]
    assert cli.main(["compare", "--config", str(CONFIG), *folders, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["cells"], summary["done"], summary["failed"], summary["missing"]) == (20, 20, {}, [])
    assert processor_seconds() - began < 300
    rows = [json.loads(line) for line in Path(summary["rows"]).read_text(encoding="utf-8").splitlines()]
    final = [row for row in rows if row["stage"] == "final"]
    seen = {(row["task"], row["method"], row["mode"], row["seed"]) for row in final}
    modes = (("lora", "attached"), ("shadow", "attached"), ("shadow", "detached"))
    assert seen == {
        (task, *mode, seed) for task in ("clinc150", "gsm8k") for mode in modes for seed in (0, 1)
    }
    for row in final:
        assert (row["split"], row["status"], row["items"], len(row["correct"])) == ("test", "ok", 40, 40)
        assert row["train_seconds"] > 0
        assert row["versions"]["peft"]
        assert (row["forgetting"] is None) == (row["mode"] == "detached")
    trainable = {row["trainable"] for row in final}
    assert max(trainable) / min(trainable) < 1.05
    assert {path.name for path in (tmp_path / "smoke").iterdir()} >= {
        "study.yaml",
        "table.md",
        "differences.png",
        "calibration.png",
    }
    assert "lora" in (tmp_path / "smoke" / "table.md").read_text(encoding="utf-8")
