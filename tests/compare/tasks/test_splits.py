"""Rows parted into train, validation and test."""

import random

import pytest
from helpers.task_rows import (
    SPLITS,
    all_names,
    everything,
    local_rows,
    write_sets,
)

from shadowpeft.compare.tasks.splits import cut
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError


@pytest.mark.parametrize("name", ["gsm8k", "squad_v2", "mmlu", "amazon5", "newsgroups20", "arc_easy"])
def test_validation_depends_on_nothing_but_the_rows(tmp_path, name):
    """Catches a split by a global random state or by the order of rows, which would choose settings on other
    rows in each run."""
    found = []
    for seed in (0, 1):
        random.seed(seed)
        rows = local_rows()[name]
        for split in rows.values():
            random.shuffle(split)
        found.append(all_names(everything(name, write_sets(tmp_path / str(seed), {name: rows}))))
    assert found[0] == found[1]


def rows_of(units: list[str]) -> list[Row]:
    return [
        Row({"unit": unit, "label": unit[0], "number": number}, f"row {number}")
        for number, unit in enumerate(units)
    ]


def by_unit(row: Row) -> str:
    return row.fields["unit"]


def test_a_cut_takes_a_tenth_in_whole_units():
    """Catches one article or one repeated text on both sides."""
    rows = rows_of([f"unit {n // 3}" for n in range(300)])
    train, validation = cut("any", rows, by_unit)
    assert (len(train), len(validation)) == (270, 30)
    assert not {by_unit(row) for row in train} & {by_unit(row) for row in validation}
    assert [row.fields["number"] for row in train] == sorted(row.fields["number"] for row in train)


def test_a_cut_is_the_same_in_every_process():
    """Catches Python's own hash of strings, which differs from run to run, and a changed rule, which makes
    old results incomparable."""
    _, validation = cut("any", rows_of([f"unit {number}" for number in range(30)]), by_unit)
    assert [by_unit(row) for row in validation] == ["unit 7", "unit 8", "unit 15"]


def test_a_cut_leaves_every_label_in_train():
    """Catches a class that is in validation alone, and small classes that never add up to a tenth."""
    rows = rows_of([f"{letter}{n}" for letter in "abcdefghij" for n in range(2)] + ["k"])
    train, validation = cut("any", rows, by_unit, lambda row: row.fields["label"])
    assert {row.fields["label"] for row in train} == set("abcdefghijk")
    assert len(validation) == 2


def test_a_cut_of_too_few_rows_is_refused():
    with pytest.raises(
        DataError,
        match="small: a validation split is cut from the training rows, which needs 2 texts of a kind, got 1",
    ):
        cut("small", rows_of(["a", "a"]), by_unit)


def test_repeats_stay_in_the_latest_split(tmp_path):
    """Catches training on a test question that differs in case and spaces alone."""
    rows = local_rows()["mawps"]
    rows["train"] += [
        {"question": f" {rows['test'][0]['question'].upper()}  ", "answer": 1},
        {**rows["validation"][0]},
    ]
    rows["validation"].append(rows["test"][1])
    items = everything("mawps", write_sets(tmp_path, {"mawps": rows}))
    assert {split: len(items[split]) for split in SPLITS} == {"train": 25, "validation": 7, "test": 8}


def test_the_same_question_of_two_subjects_counts_as_one(tmp_path):
    """Catches a comparison of whole prompts, whose first line names the subject."""
    rows = local_rows()["mmlu"]
    rows["dev"].append({**rows["test"][0], "subject": "another"})
    assert len(everything("mmlu", write_sets(tmp_path, {"mmlu": rows}))["train"]) == 4 + 20


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        (
            "amazon5",
            "stars",
            6,
            r"amazon5: the test split holds 1 label unseen in training \(6\); add training rows of them",
        ),
        ("newsgroups20", "group", "alt.unknown", r"unseen in training \(alt.unknown\)"),
        (
            "clinc150",
            "intent",
            "weather",
            r"clinc150: the test split holds 1 label unseen in training \(weather\)",
        ),
    ],
)
def test_labels_unseen_in_training_are_named(tmp_path, name, field, value, message):
    rows = local_rows()[name]
    rows["test"][0][field] = value
    with pytest.raises(DataError, match=message):
        everything(name, write_sets(tmp_path, {name: rows}))
