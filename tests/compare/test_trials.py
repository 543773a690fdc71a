"""The trials of a search, and the values they are compared by."""

from dataclasses import replace

from helpers.noted_cells import ok

from shadowpeft.compare import records
from shadowpeft.compare.trials import Validation, combinations, ranked, trials, validations


def test_every_method_has_as_many_trials_where_something_is_trained(small):
    """Catches a base that is searched on a task that it answers untrained."""
    counts = {each[1:]: len(trials(small, each)) for each in combinations(small)}
    assert counts == {
        ("clinc150", "base"): 2, ("clinc150", "lora"): 2, ("clinc150", "shadow"): 2,
        ("gsm8k", "base"): 0, ("gsm8k", "lora"): 2, ("gsm8k", "shadow"): 2,
    }  # fmt: skip


def test_values_are_those_of_attached_trials_on_their_own_task(small):
    """Catches a choice by the detached model, by another task, by a test row, or by no number."""
    first, second = trials(small, (small.model, "clinc150", "lora"))
    good = ok(first, 0.5, items=40)
    for change in (
        {"stage": "final"}, {"mode": "detached"}, {"task": "gsm8k"}, {"value": float("nan")}, {"value": None},
    ):  # fmt: skip
        assert validations([{**good, **change}]) == {}
    assert validations(records.failed(first, "crashed", "")) == {}
    found = validations([good, ok(second, 0.25, metric="loss")])
    assert found == {first.key: Validation(-0.5, 40), second.key: Validation(0.25, 0)}
    assert ranked([second, first, replace(first, seed=7)], found) == [first, second]
