"""The statistics of a comparison: intervals of means and of paired differences."""

import numpy as np
import pytest

from shadowpeft.errors import DataError
from shadowpeft.reporting import stats


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)],
)
def test_quantiles_are_those_of_the_tables(freedom, quantile):
    """Catches a wrong term of the closed form, of odd or even degrees of freedom."""
    assert stats.t_quantile(freedom) == pytest.approx(quantile, abs=1e-4)


def test_the_interval_over_seeds_is_students():
    """Catches the normal quantile in place of t's, the variance over n, and an interval made up of one
    seed."""
    found = stats.mean_interval([0.70, 0.72, 0.77])
    assert (found.mean, found.margin) == pytest.approx(
        (0.73, 4.30265 * np.std([0.70, 0.72, 0.77], ddof=1) / 3**0.5), abs=1e-6
    )
    assert stats.mean_interval([0.7]) == stats.Estimate(0.7, None, 1)
    assert stats.mean_interval([]) is None
    assert stats.mean_interval([0.5, 0.5]).margin == 0


def simulated(random, seeds, items, spread):
    """Draw the differences of two methods of the same expected score, with an effect of the seed and of the
    item."""
    ease = random.normal(0, 1.2, items)

    def marks(bias):
        hits = (
            ease + bias + random.normal(0, spread, seeds)[:, None] + random.logistic(0, 0.6, (seeds, items))
            > 0
        )
        return hits.astype(np.int8)

    return marks(random.normal(0, 0.5, items)) - marks(random.normal(0, 0.5, items))


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_intervals_cover_the_truth_as_often_as_they_say(spread):
    """Catches intervals too narrow or too wide; with an effect of seeds, items alone are not enough, which is
    why both are given."""
    random = np.random.default_rng(5)
    found = [stats.difference(simulated(random, 3, 300, spread), resamples=1000) for _ in range(500)]
    items = np.mean([low <= 0 <= high for low, high in (each.items for each in found)])
    both = np.mean([low <= 0 <= high for low, high in (each.items_and_seeds for each in found)])
    assert 0.93 <= both <= 0.99
    assert 0.92 <= items <= 0.98 if not spread else items < 0.85


def test_the_average_over_cells_covers_the_truth():
    """Catches cells weighed wrongly, and cells of the same items treated as if they were of other ones."""
    random = np.random.default_rng(6)
    hits = {"same": 0, "other": 0}
    for _ in range(400):
        marks = simulated(random, 1, 300, 0.0)
        for name, tasks in {"same": ("a", "a"), "other": ("a", "b")}.items():
            low, high = stats.average([(task, marks) for task in tasks], resamples=1000).items
            hits[name] += int(low <= 0 <= high)
    assert 0.92 <= hits["same"] / 400 <= 0.98
    assert hits["other"] / 400 < 0.9


def test_the_average_counts_every_cell_the_same():
    """Catches an average over items, in which the largest task decides."""
    few, many = np.ones((2, 10), np.int8), np.zeros((2, 990), np.int8)
    found = stats.average([("a", few), ("b", many)])
    assert (found.value, found.cells, found.count) == (0.5, 2, 1000)
    assert found.items == (0.5, 0.5)


def test_identical_methods_do_not_differ():
    """Catches noise from the resampling itself."""
    marks = dict.fromkeys(range(3), "0110100101")
    found = stats.difference(stats.paired(marks, marks))
    assert found.value == 0
    assert found.items[0] <= 0 <= found.items[1]
    assert found.items_and_seeds[0] <= 0 <= found.items_and_seeds[1]


def test_pairing_narrows_the_interval():
    """Catches methods resampled apart: for items hard for both, that is twice as wide."""
    random = np.random.default_rng(0)
    ease = random.beta(0.5, 0.5, 1000)
    first, second = ((random.random(1000) < ease).astype(np.int8) for _ in range(2))
    low, high = stats.difference((first - second)[None]).items
    apart = 1.96 * (first.var() / 1000 + second.var() / 1000) ** 0.5
    assert high - low < 0.8 * 2 * apart


def test_the_bootstrap_is_that_of_drawing_items_one_by_one():
    """Catches a wrong multinomial: many distinct values, in several pieces, against plain resampling."""
    random = np.random.default_rng(0)
    cells = [
        ("a", random.integers(-1, 2, (7, 400)).astype(np.int8) * random.integers(0, 2, 400)) for _ in range(2)
    ]
    shares = sum(cell.mean(0) for _, cell in cells) / 2
    drawn = shares[random.integers(0, 400, (10_000, 400))].mean(1)
    assert stats.average(cells).items == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=2e-3)


def test_twenty_thousand_items_take_no_memory():
    """Catches a matrix of resamples by items, which would be 1.6 GB."""
    import tracemalloc

    cell = np.random.default_rng(0).integers(-1, 2, (3, 20_000)).astype(np.int8)
    tracemalloc.start()
    stats.difference(cell)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_one_seed_gives_no_interval_over_seeds():
    found = stats.difference(np.array([[1, 0, 0, -1, 1]], np.int8))
    assert found.items_and_seeds is None
    assert found.seeds == 1


@pytest.mark.parametrize(
    ("own", "other", "message"),
    [
        ({0: "0110"}, {0: "011"}, "got 3 and 4 items"),
        ({0: "01", 1: "011"}, {0: "01", 1: "011"}, "got 2 and 3 items"),
        ({0: ""}, {0: ""}, "got 0 items"),
        ({0: "01"}, {1: "01"}, "expected seeds that both methods have"),
        ({0: "0x"}, {0: "01"}, "got 'x'"),
    ],
)
def test_marks_that_do_not_pair_are_refused(own, other, message):
    with pytest.raises(DataError, match=message):
        stats.paired(own, other)
