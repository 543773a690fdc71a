"""Metrics that several tasks share."""

from shadowpeft.compare.tasks import Item
from shadowpeft.compare.tasks.scoring import accuracy, until_stop


def test_accuracy_and_stops():
    assert accuracy([Item("", 1), Item("", 0)], [1, 1]).correct == [1, 0]
    assert until_stop("\n one\n two\nQuestion: three", ("\nQuestion:", "four")) == "one\n two"
    assert until_stop(" one ", ()) == "one"
