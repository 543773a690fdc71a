"""The pictures of a report, as data of an HTML page."""

from collections.abc import Mapping

import numpy as np

from shadowpeft.reporting.pictures import COLOURS, GREY, as_data, new_axes
from shadowpeft.route.measures import Confidence

Curve = tuple[np.ndarray, np.ndarray]


def reliability_diagram(before: Confidence, after: Confidence) -> str:
    """Draw how often answers are right, over how likely that was said to be."""
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    most = max(entry.size for shown in (before, after) for entry in shown.bins)
    for name, shown, colour in (("before", before, COLOURS[1]), ("after", after, COLOURS[0])):
        bins = [entry for entry in shown.bins if entry.size]
        confidences, accuracies = [e.confidence for e in bins], [e.accuracy for e in bins]
        label = f"{name} calibration, ECE {shown.error:.3f}"
        axes.plot(confidences, accuracies, color=colour, linewidth=1.2, label=label)
        axes.scatter(confidences, accuracies, [20 + 180 * e.size / most for e in bins], colour, alpha=0.7)
    axes.set(xlabel="said probability of being right", ylabel="share that is right")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(frameon=False)
    return as_data(figure)


def risk_coverage_plot(curves: Mapping[str, Curve], point: tuple[float, float], risk: float | None) -> str:
    """Draw the share of errors among the answers kept, over the share of requests whose answer is kept.

    Args:
        curves: by the name of the score, the policy's first.
        point: where the policy stands.
        risk: what is promised.
    """
    figure, axes = new_axes()
    for (name, (coverages, risks)), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(100 * coverages, 100 * risks, color=colour, linewidth=1.6, label=name)
    if risk is not None:
        axes.axhline(100 * risk, color=GREY, linewidth=1, linestyle="--", label="promised")
    axes.scatter(100 * point[0], 100 * point[1], 60, "black", zorder=3, label="policy")
    axes.set(xlabel="requests whose answer is kept, %", ylabel="wrong among these, %", xlim=(0, 101))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return as_data(figure)


def quality_plot(
    curves: Mapping[str, Curve], band: Curve, points: Mapping[str, tuple[float, float]], random: Curve
) -> str:
    """Draw the share of requests that are answered rightly, over the share sent to the cloud.

    Args:
        curves: by the name of the score, the policy's first.
        band: the lower and the upper end of the first curve's 95 % band.
        points: share and quality of what has no curve, by name.
        random: the two ends of the line of sending at random.
    """
    figure, axes = new_axes(width=8.4)
    for (name, (shares, quality)), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(100 * shares, 100 * quality, color=colour, linewidth=1.6, label=name)
    shares = next(iter(curves.values()))[0]
    axes.fill_between(100 * shares, 100 * band[0], 100 * band[1], color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.plot(100 * random[0], 100 * random[1], color=GREY, linewidth=1, linestyle="--", label="at random")
    for (name, (share, value)), marker in zip(points.items(), "oXsP", strict=False):
        axes.scatter(100 * share, 100 * value, 60, "black", marker=marker, zorder=3, label=name)
    axes.set(xlabel="requests sent to the cloud, %", ylabel="requests answered rightly, %", xlim=(-1, 101))
    # Beside the curves: they may run through any corner.
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return as_data(figure)
