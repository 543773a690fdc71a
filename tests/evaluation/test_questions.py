"""Rows as questions: `test_evaluate.py` tests what is right through the exact match."""

from shadowpeft.data.encode import Opening, Reference
from shadowpeft.evaluation.questions import Questions


def test_what_a_template_opens_answers_with_is_no_part_of_them():
    """Catches an opening that makes every answer of a model that thinks a wrong one."""
    opening = Opening("<think>\n\n</think>\n\n", 4)
    reference = Reference("<think>\n\n</think>\n\nfour", "four", 5)
    questions = Questions([[1]] * 3, [opening] * 3, [reference] * 3, 6)
    answers = ["<think>\n\n</think>\n\nfour ", "four", "<think>\n\n</think>\n\nfive"]
    assert questions.contents(answers) == ["four", "four", "five"]
    assert questions.are_right(answers) == [True, True, False]
