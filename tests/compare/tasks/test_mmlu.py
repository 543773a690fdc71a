"""MMLU: its form, its scores and its splits."""

from helpers.task_rows import (
    SPLITS,
    SUBJECTS,
    everything,
)

from shadowpeft.compare.tasks import Item, mmlu


def test_mmlu_asks_in_the_standard_form(local):
    item = mmlu.TASK.load("test", local)[2]
    assert item.prompt == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "test text number 2\nA. choice 2 0\nB. choice 2 1\nC. choice 2 2\nD. choice 2 3\nAnswer:"
    )
    assert (item.answer, item.target, item.choices, item.group) == (
        " C",
        2,
        (" A", " B", " C", " D"),
        "abstract_algebra",
    )


def test_mmlu_weights_by_question_and_by_subject():
    items = [Item("", 0, group="law")] * 3 + [Item("", 1, group="virology")]
    assert mmlu.score(items, [0, 0, 0, 0]).metrics == {"accuracy": 0.75, "accuracy_macro": 0.5}


def test_mmlu_trains_on_what_there_is(local, hub):
    """Catches validation rows in training where the folder has no auxiliary training set."""
    here, there = everything("mmlu", local), everything("mmlu", hub)
    assert [len(here[split]) for split in SPLITS] == [24, 10, 10]
    assert {item.group for item in here["validation"]} == set(SUBJECTS)
    assert [len(there[split]) for split in SPLITS] == [10, 10, 10]
    assert all(" auxiliary text " not in item.prompt for item in there["validation"])
