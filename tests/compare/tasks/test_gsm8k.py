"""GSM8K: the final number of an answer, and what is taught."""

import pytest

from shadowpeft.compare.tasks import Item, gsm8k


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 3 + 4 = 7\n#### 7", 7),
        ("#### 1,234,567", 1234567),
        ("#### $1,200.50.", 1200.5),
        ("#### -5", -5),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### 5.0", 5),
        ("#### .5", 0.5),
        ("#### 7 because 3 + 4", 7),
        ("#### 3\n#### 4 apples", 4),
        ("12 and then ####", 12),
        ("The answer is 18.", 18),
        ("16-3=13", 13),
        ("between 10-15", 15),
        ("f(2)-1", 1),
        ("it fell to -3 degrees", -3),
        ("16 - 3", 3),
        ("no number", None),
        ("", None),
    ],
)
def test_the_final_number(text, number):
    assert gsm8k.final_number(text) == number


def test_gsm8k_reads_the_final_number_alone():
    """Catches marking by the wording, and numbers of a next question that the model made up."""
    items = [Item("", 1200.0)] * 4
    answers = ["it is 1,200.00", " 5\n#### 1200\nQuestion: How many?\nAnswer: 7\n#### 7", "1200.01", "12 00"]
    assert gsm8k.TASK.score(items, answers).correct == [1, 1, 0, 0]
    assert gsm8k.TASK.score(items, answers).metrics == {"exact_match": 0.5}


def test_gsm8k_teaches_the_solution_without_calculator(local):
    item = next(item for item in gsm8k.TASK.load("test", local) if item.target == 6)
    assert item.prompt == "Question: test text number 3\nAnswer:"
    assert item.answer == " He has 2*3=6.\n#### 6"
