"""CLINC150."""

import pytest

from shadowpeft.compare.tasks import Item, clinc


def test_clinc_tells_scopes_apart():
    items = [
        Item("", 3, group="in-scope"),
        Item("", 4, group="in-scope"),
        Item("", 150, group="out-of-scope"),
    ]
    metrics = clinc.score(items, [3, 150, 150]).metrics
    assert metrics == pytest.approx({"accuracy": 2 / 3, "accuracy_in_scope": 0.5, "recall_out_of_scope": 1.0})
    assert "accuracy_in_scope" not in clinc.score(items[2:], [0]).metrics


def test_clinc_maps_the_hub_by_name(hub):
    """Catches the hub's label numbers taken for ours: there out-of-scope is in the middle."""
    items = clinc.TASK.load("test", hub)[:3]
    assert [clinc.LABELS[item.target] for item in items] == ["translate", "oos", "accept_reservations"]
    assert [item.group for item in items] == ["in-scope", "out-of-scope", "in-scope"]
    assert len(set(clinc.LABELS)) == 151
    assert clinc.LABELS[:-1] == tuple(sorted(clinc.LABELS[:-1]))
