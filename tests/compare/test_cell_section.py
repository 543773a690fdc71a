"""The section of a report on one model and task: what its tables are said to hold."""

import pytest
from helpers.study_records import MODELS, record, study, study_records

from shadowpeft.compare.cell_section import cell_section
from shadowpeft.compare.results import Results

ALONE = {"value": 50.0, "metric": "train_ms_per_step", "split": "none", "correct": None}


def section(tmp_path, records, task: str = "clinc150", **changes) -> str:
    return cell_section(Results(study(tmp_path, **changes), records), MODELS[0], task)


def test_a_task_without_final_results_says_so(tmp_path):
    """Catches empty tables for a task that the study has yet to reach."""
    records = study_records(methods=("lora",), models=MODELS[:1], tasks=("gsm8k",))
    assert section(tmp_path, records) == "## gemma-270m: clinc150\n\nNo final results yet."


@pytest.mark.parametrize("value", [0.25, 0.5])
def test_a_score_that_is_no_share_of_the_items_is_explained(tmp_path, value):
    """Catches differences of exact matches beside a score of F1, and nothing that says so."""
    text = section(tmp_path, [record(MODELS[0], "clinc150", "lora", correct="01" * 20, value=value)])
    assert "accuracy on 40 test items, 1 seed, rank 16." in text
    assert ("The score is not the share of items answered correctly" in text) == (value == 0.25)


def test_costs_say_how_they_were_timed(tmp_path):
    """Catches times of runs that shared a device which a reader takes for the method's own."""
    records = study_records(methods=("lora",), models=MODELS[:1], tasks=("clinc150",))
    assert "\n\nCost:\n\n" in section(tmp_path, records)
    shared = section(tmp_path, records, workers=3)
    assert "not yet timed alone: measured while up to 3 runs shared a device" in shared
    alone = section(tmp_path, [*records, record(MODELS[0], "clinc150", "lora", stage="cost", **ALONE)])
    assert "Cost; where timed alone, no other run was on the device" in alone


def test_further_metrics_have_their_units(tmp_path):
    """Catches a loss written as a percentage, and the score repeated among the further metrics."""
    metrics = {"accuracy": 0.5, "accuracy_macro": 0.25, "nll": 1.5}
    text = section(tmp_path, [record(MODELS[0], "clinc150", "lora", correct="01" * 20, metrics=metrics)])
    further = text.split("Further metrics:\n\n")[1].splitlines()
    assert further == ["| metric | lora |", "| --- | ---: |", "| accuracy_macro | 25.0 |", "| nll | 1.500 |"]


def test_partners_have_a_table_only_where_there_are_some(tmp_path):
    records = [record(MODELS[0], "gsm8k", "lora", correct="01")]
    assert "Out of distribution" not in section(tmp_path, records, task="gsm8k")
    records.append(record(MODELS[0], "mawps", "lora", trained_on="gsm8k", correct="0111"))
    text = section(tmp_path, records, task="gsm8k").split("Out of distribution:")[1]
    assert "| mawps | lora | attached | accuracy | 4 | 75.0 | - | - | - |" in text
