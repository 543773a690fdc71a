"""The forest plot: which differences it draws, where, and how wide."""

import pytest
from helpers.study_records import MODELS, study, study_records

from shadowpeft.compare import forest_plot
from shadowpeft.compare.plot_style import plt
from shadowpeft.compare.results import Results
from shadowpeft.reporting import stats


def test_every_difference_to_lora_has_its_point(tmp_path):
    """Catches the base in the picture, a mode in the wrong panel, and an average that is not drawn."""
    results = Results(study(tmp_path), study_records())
    figure = forest_plot.differences(results)
    attached, detached = figure.axes
    assert [attached.get_title(), detached.get_title()] == ["attached models", "detached models"]
    labels = [label.get_text().replace("\n", " ") for label in attached.get_yticklabels()]
    assert [label.split()[0] for label in labels[:4]] == ["gemma-270m"] * 2 + ["qwen-0.5b"] * 2
    assert labels[4] == "average of 4 cells"
    for axes, mode in ((attached, "attached"), (detached, "detached")):
        drawn = {
            line.get_ydata()[0]: line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1
        }
        cells = [result for result in results.select() if (result.method, result.mode) == ("shadow", mode)]
        (average,) = (each for each in results.averages() if (each.method, each.mode) == ("shadow", mode))
        wanted = [results.difference(cell).value for cell in cells] + [average.difference.value]
        assert drawn == pytest.approx({y: 100 * value for y, value in enumerate(wanted)})
    plt.close(figure)


def test_without_lora_there_is_no_forest(tmp_path):
    """Catches an empty picture, and one of the base alone."""
    for methods in (("shadow",), ("base", "lora")):
        records = study_records(methods=methods, models=MODELS[:1])
        assert forest_plot.differences(Results(study(tmp_path), records)) is None


def test_the_forest_shows_the_points_whatever_two_seeds_make_of_an_interval():
    """Catches a picture 400 points wide in which no difference can be seen."""
    wide = stats.Difference(0.01, (-0.02, 0.04), (-2.3, 1.8), 2, 1000, 1)
    low, high = forest_plot.shown_span([wide])
    assert -10 < low < -2
    assert 4 < high < 10
