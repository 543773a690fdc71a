"""Rows that are drawn, and rows that an earlier study has read."""

import random

from shadowpeft.compare import cell_data


def test_rows_are_drawn_the_same_for_every_seed() -> None:
    """Catches a draw that depends on the cell, so that methods would be compared on different items."""
    drawn = cell_data.draw(range(100), 10)
    assert drawn == cell_data.draw(range(100), 10) == sorted(drawn)
    assert cell_data.draw(range(5), 10) == list(range(5))


def test_skipped_rows_are_those_that_were_drawn_before() -> None:
    """Catches a second study that reads test rows of the first, draws others each time, or a first whose rows
    are no longer the same."""
    rows = [f"row {index}" for index in range(100)]
    first = cell_data.draw(rows, 30)
    assert (
        first
        == cell_data.draw(rows, 30, ())
        == [rows[index] for index in sorted(random.Random(0).sample(range(100), 30))]
    )
    assert cell_data.draw(rows, None) == cell_data.draw(rows, 100) == rows
    later = cell_data.draw(rows, 40, (30,))
    assert later == cell_data.draw(rows, 40, (30,))
    assert (len(later), set(later) & set(first)) == (40, set())
    left = [row for row in rows if row not in first]
    assert cell_data.draw(rows, None, (30,)) == cell_data.draw(rows, 90, (30,)) == left
    assert later == [row for row in left if row in later] != left[:40], (
        "in their order, and not the first ones"
    )
    assert later == [left[index] for index in sorted(random.Random(0).sample(range(70), 40))], (
        "the rows of the studies in results/"
    )
    assert cell_data.draw(rows, 40, (100,)) == []


def test_a_third_study_skips_the_rows_of_both_before() -> None:
    """Catches a third study that reads rows of the first or of the second, as one that skips a single draw of
    their sum does."""
    rows = [f"row {index}" for index in range(100)]
    first, second, third = (cell_data.draw(rows, 30, skips) for skips in ((), (30,), (30, 30)))
    assert len({*first, *second, *third}) == 90
    fourth = cell_data.draw(rows, None, (30, 30, 30))
    assert fourth == [row for row in rows if row not in {*first, *second, *third}]
    assert third == [row for row in rows if row in {*third}], "in their order"
    assert set(cell_data.draw(rows, 30, (60,))) & {*first, *second}, "what the test can see"
    uneven = [
        set(cell_data.draw(rows, limit, skips)) for limit, skips in ((10, ()), (50, (10,)), (None, (10, 50)))
    ]
    assert (set.union(*uneven), sum(map(len, uneven))) == ({*rows}, 100)
    assert cell_data.draw(rows, 40, (60, 60)) == []
