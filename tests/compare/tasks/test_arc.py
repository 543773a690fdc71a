"""ARC's questions, in the layouts of a folder and of the hub."""

import pytest

from shadowpeft.compare.tasks import arc
from shadowpeft.data.rows import Row
from shadowpeft.errors import DataError

HUB_ROW = {
    "question": "Why?",
    "choices": {"text": ["a", "b", "c"], "label": ["1", "2", "3"]},
    "answerKey": "3",
}


def test_science_is_asked_in_mmlus_form_without_a_subject(local):
    science = arc.EASY.load("test", local)[0]
    assert science.prompt.startswith(
        "The following are multiple choice questions (with answers).\n\ntest text number 0\nA. "
    )
    assert science.choices == (" A", " B", " C")
    assert len(arc.CHALLENGE.load("test", local)[0].choices) == 5


def test_an_answer_by_its_label_is_one_by_its_place():
    """Catches numbered choices, which some rows of the hub have, scored against another letter."""
    item = arc._item(Row(HUB_ROW, "rows:0"))
    assert item == arc._item(Row({"question": "Why?", "choices": ["a", "b", "c"], "answer": 2}, "rows:0"))
    assert (item.target, item.answer) == (2, " C")
    with pytest.raises(DataError, match="rows:0: expected the answer to be one of 1, 2, 3, got 'C'"):
        arc._item(Row({**HUB_ROW, "answerKey": "C"}, "rows:0"))
