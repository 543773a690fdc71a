"""The pictures of a report."""

import base64

import numpy as np
import pytest
from matplotlib import pyplot as plt

from shadowpeft.reporting.reliability import reliability
from shadowpeft.route import plots
from shadowpeft.route.measures import Confidence

CURVE = np.linspace(0, 1, 5), np.linspace(0.9, 1, 5)
SURE = Confidence(*reliability([0.9, 0.95, 0.2], [1, 0, 0]))


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the picture that a test has drawn."""
    figures, picture = [], plots.as_data
    monkeypatch.setattr(plots, "as_data", lambda figure: figures.append(figure) or picture(figure))
    return figures


def names_in(drawn):
    (figure,) = drawn
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_a_picture_is_a_png_and_is_closed(drawn):
    open_before = plt.get_fignums()
    data = plots.reliability_diagram(SURE, SURE)
    assert base64.b64decode(data.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert plt.get_fignums() == open_before
    assert names_in(drawn) == ["before calibration, ECE 0.350", "after calibration, ECE 0.350"]


def test_what_is_promised_is_drawn(drawn):
    plots.risk_coverage_plot({"min_margin": CURVE, "mean_entropy": CURVE}, (0.8, 0.03), 0.05)
    assert names_in(drawn) == ["min_margin", "mean_entropy", "promised", "policy"]
    assert drawn[0].axes[0].lines[-1].get_ydata()[0] == pytest.approx(5)


def test_curves_and_points_of_quality_are_drawn(drawn):
    points = {"the policy": (0.2, 0.97), "alone": (0.0, 0.9)}
    plots.quality_plot({"min_margin": CURVE, "oracle": CURVE}, (CURVE[1], CURVE[1]), points, CURVE)
    assert names_in(drawn) == ["min_margin", "oracle", "at random", "the policy", "alone"]
