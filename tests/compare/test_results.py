"""Averages, references and costs of a study's results."""

import re

import numpy as np
import pytest
from helpers.study_records import MODELS, record, study, study_records, table_of

from shadowpeft.compare.report import report
from shadowpeft.compare.results import Results
from shadowpeft.compare.summary import summary


def test_the_average_is_over_the_cells_that_lora_has(tmp_path):
    """Catches an average that compares a method on easy tasks with LoRA on hard ones."""
    rows = [
        each
        for each in study_records()
        if (each["method"], each["model"], each["task"]) != ("lora", MODELS[0], "gsm8k")
    ]
    found = summary(study(tmp_path), rows)
    shadow = next(
        each for each in found["averages"] if (each["method"], each["mode"]) == ("shadow", "attached")
    )
    cells = [
        each
        for each in found["cells"]
        if (each["method"], each["mode"]) == ("shadow", "attached") and each["difference"]
    ]
    assert (shadow["cells"], shadow["difference"]["cells"]) == (3, 3)
    assert shadow["difference"]["value"] == pytest.approx(shadow["value"]["mean"] - shadow["lora"]["mean"])
    assert shadow["difference"]["value"] == pytest.approx(
        np.mean([each["difference"]["value"] for each in cells])
    )
    average = table_of(
        report(study(tmp_path), rows, tmp_path).read_text(encoding="utf-8"), "Averages over tasks and models"
    )[4]
    assert average[:3] == ["shadow", "attached", "3 of 4"]
    assert {entry["cell"] for entry in found["missing"]} == {
        f"final {MODELS[0]} gsm8k lora rank=16 seed={seed}" for seed in range(3)
    }


def test_the_average_is_over_the_seeds_that_lora_has(tmp_path):
    """Catches a score that a lost seed moves by itself, so that it no longer differs from LoRA's by the
    difference shown."""
    rows = study_records()
    lost = [("lora", MODELS[0], "gsm8k", 1), ("shadow", MODELS[1], "clinc150", 2)]
    rows = [each for each in rows if (each["method"], each["model"], each["task"], each["seed"]) not in lost]
    found = {(each["method"], each["mode"]): each for each in summary(study(tmp_path), rows)["averages"]}
    for each in (found["shadow", "attached"], found["shadow", "detached"]):
        assert each["value"]["count"] == each["lora"]["count"] == 10
        assert each["difference"]["value"] == pytest.approx(each["value"]["mean"] - each["lora"]["mean"])
    assert found["lora", "attached"]["value"]["count"] == 11
    assert found["lora", "attached"]["lora"] is None


def test_the_untuned_base_is_compared_with_every_seed(tmp_path):
    """Catches a base with its one row set against LoRA's first seed alone."""
    rows = [each for each in study_records() if each["method"] != "base" or each["seed"] == 0]
    rows = [each | {"steps": 0} if each["method"] == "base" else each for each in rows]
    results = Results(study(tmp_path), rows)
    base = next(line for line in results.final if line.method == "base")
    assert results.difference(base).seeds == 3


def test_costs_come_from_runs_timed_alone(tmp_path):
    """Catches times of runs that shared a device where better ones exist."""
    rows = study_records(methods=("lora", "shadow"))
    changes = {
        "value": 50.0,
        "metric": "train_ms_per_step",
        "train_tokens_per_second": 9999.0,
        "ms_per_answer": 7.0,
        "split": "none",
        "correct": None,
    }
    rows.append(record(MODELS[0], "clinc150", "shadow", stage="cost", **changes))
    text = report(study(tmp_path), rows, tmp_path).read_text(encoding="utf-8")
    assert "| shadow | attached | 15.0 | 9,999 | 2.50 | 4.00 | 7.0 | alone |" in text
    assert re.search(
        r"\| lora \| attached \| 40\.\d \| 5,000 \| 2.50 \| 4.00 \| 12.5 \| in the study \|", text
    )
