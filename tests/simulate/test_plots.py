"""The pictures of a simulation's report."""

import pytest
from helpers.simulated import answers, near, strategy

from shadowpeft.simulate import plots
from shadowpeft.simulate.arrivals import Outages, arrivals
from shadowpeft.simulate.fleet import Fleet
from shadowpeft.simulate.measures import figures_of

SYSTEM = near(requests=100)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that a test has drawn."""
    figures, as_data = [], plots.as_data
    monkeypatch.setattr(plots, "as_data", lambda figure: figures.append(figure) or as_data(figure))
    return figures


@pytest.fixture(scope="module")
def found():
    how = strategy([1, 0], answers([1, 0], 0.1), answers([1, 1], 1.0))
    coming = arrivals(SYSTEM, 1, 2, 0)
    return figures_of(SYSTEM, how, coming, Fleet(SYSTEM, how, coming, Outages([], [])).run())


def test_each_strategy_is_a_point(drawn, found):
    names = [f"strategy {at}" for at in range(9)]
    for draw in (plots.right_by_seconds, plots.cost_by_right):
        assert draw(dict.fromkeys(names, found), 5).startswith("data:image/png;base64,")
    for figure in drawn:
        (axes,) = figure.axes
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
    assert drawn[0].axes[0].collections[0].get_offsets().tolist() == [[found.mean, 100 * found.right]]
    assert drawn[1].axes[0].collections[0].get_offsets().tolist() == [[100 * (1 - found.right), found.cost]]


def test_each_strategy_is_a_line_over_the_fleets(drawn, found):
    plots.slowest_by_fleet([1, 100], {"policy": [found, found]})
    assert drawn[0].axes[0].lines[0].get_xydata().tolist() == [[1, found.p99], [100, found.p99]]
