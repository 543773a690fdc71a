"""MAWPS."""

from shadowpeft.compare.tasks import Item, mawps


def test_mawps_takes_rounded_fractions():
    items = [Item("", 5 / 6)] * 3
    assert mawps.TASK.score(items, ["#### 0.8333", "0.83", "5"]).correct == [1, 0, 0]
