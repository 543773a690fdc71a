"""How pictures look: markers, legends, titles, and the panels of models and tasks."""

import pytest
from helpers.study_records import MODELS, record, study

from shadowpeft.compare import plot_style
from shadowpeft.compare.results import Results


def test_methods_and_modes_can_be_distinguished():
    """Catches a detached model that looks like the attached one, and an unknown method without a look."""
    entries = [plot_style.legend_entry("shadow", mode) for mode in ("attached", "detached")]
    assert [entry.get_label() for entry in entries] == ["shadow", "shadow detached"]
    assert [entry.get_linestyle() for entry in entries] == ["-", "--"]
    assert [entry.get_markerfacecolor() for entry in entries] == [entries[0].get_color(), "white"]
    assert plot_style.legend_entry("shadow", joined=False).get_linestyle() == "None"
    assert plot_style.style("a new one") not in [
        plot_style.style(name) for name in ("base", "lora", "shadow")
    ]


def test_panels_lie_by_model_and_task(tmp_path):
    """Catches a panel in another's place, a title of another, and axes drawn where nothing was measured."""
    places = [(MODELS[0], "clinc150"), (MODELS[0], "gsm8k"), (MODELS[1], "gsm8k")]
    records = [
        record(*place, method, seed=seed, correct="01" * 600)
        for place in places
        for method in ("base", "lora")
        for seed in range(1 + (method == "lora"))
    ]
    results = Results(study(tmp_path), records)
    figure, found = plot_style.panels(results, results.select())
    assert list(found) == places
    titles = [axes.get_title().split("\n") for axes in found.values()]
    assert titles[1] == ["gemma-270m, gsm8k", "1,200 items, 2 seeds"]
    corners = [
        tuple(axes.get_subplotspec().get_topmost_subplotspec().get_geometry()) for axes in found.values()
    ]
    assert [(rows, columns, cell) for rows, columns, cell, _ in corners] == [(2, 2, 0), (2, 2, 1), (2, 2, 3)]
    assert not figure.axes[2].axison
    plot_style.plt.close(figure)


@pytest.mark.parametrize(("numbers", "written"), [([3], "3"), ([100, 500, 1200], "100 to 1,200")])
def test_a_span_is_written_by_its_ends(numbers, written):
    assert plot_style.span(numbers) == written
