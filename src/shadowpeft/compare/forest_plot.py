"""The forest plot of a study: each method's difference to LoRA, by model and task, with both intervals."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shadowpeft.compare.method_result import MethodResult
from shadowpeft.compare.model_names import short
from shadowpeft.compare.plot_style import (
    Place,
    at,
    counts,
    framed,
    legend_entry,
    look,
    plt,
    span,
    style,
    wrapped,
)
from shadowpeft.compare.results import Results
from shadowpeft.reporting.stats import Difference, Interval

_MODES = ("attached", "detached")


class _Bar(NamedTuple):
    """One difference, and the height at which it is drawn."""

    difference: Difference
    y: float
    result: MethodResult


def differences(results: Results) -> Figure | None:
    """Draw the forest plot; `None` without differences.

    The base stays out of it: it is so far from LoRA that nothing else would be visible beside it.
    """
    shown = [
        result
        for result in results.select(rank=results.rank)
        if result.method != "base" and results.difference(result)
    ]
    if not shown:
        return None
    modes = [mode for mode in _MODES if any(result.mode == mode for result in shown)]
    places = list(dict.fromkeys((result.model, result.task) for result in shown))
    methods = list(dict.fromkeys(result.method for result in shown))
    labels = [_label(results, shown, place) for place in places]
    height = max(0.2 * len(methods) + 0.15, *(0.05 + 0.5 / 3 * (1 + label.count("\n")) for label in labels))
    size = (3.2 + 4.2 * len(modes), 2.1 + height * (len(places) + (len(places) > 1)))
    figure, panels = plt.subplots(1, len(modes), figsize=size, sharey=True, squeeze=False)
    for axes, mode in zip(panels[0], modes, strict=True):
        _forest(axes, _bars(results, shown, mode=mode, places=places, methods=methods), len(places))
        axes.set(xlabel="difference to LoRA, points", title=f"{mode} models")
    if len(places) > 1:
        labels.append(_average_label(results, methods))
    panels[0, 0].set_yticks(range(len(labels)), labels)
    panels[0, 0].set_ylim(len(labels) - 0.5, -0.5)
    intervals = [
        Line2D([], [], color="#555555", linewidth=3.2, label="95 %, other test items"),
        Line2D([], [], color="#555555", linewidth=1.0, label="95 %, other test items and seeds"),
    ]
    return framed(
        figure,
        f"Share of test items answered correctly: difference to LoRA of rank {results.rank}",
        [*(legend_entry(method, joined=False) for method in methods), *intervals],
        note="A line that reaches the edge goes on beyond it.",
    )


def _label(results: Results, shown: Sequence[MethodResult], place: Place) -> str:
    model, task = place
    return f"{wrapped(short(results.models)(model))}\n{task}\n{counts(at(shown, place))}"


def _average_label(results: Results, methods: Sequence[str]) -> str:
    found = (average.difference for average in results.averages() if average.method in methods)
    return f"average of\n{span(sorted({difference.cells for difference in found if difference}))} cells"


def _bars(
    results: Results, shown: Iterable[MethodResult], mode: str, places: list[Place], methods: list[str]
) -> list[_Bar]:
    """Return the differences of one mode; those of an average over several places lie below all others."""
    offsets = _offsets(methods)
    bars = []
    for result in shown:
        difference = results.difference(result)
        if result.mode == mode and difference:
            y = places.index((result.model, result.task)) + offsets[result.method]
            bars.append(_Bar(difference, y, result))
    if len(places) > 1:
        bars += [
            _Bar(average.difference, len(places) + offsets[average.method], average.results[0])
            for average in results.averages()
            if average.difference and average.method in offsets and average.mode == mode
        ]
    return bars


def _offsets(methods: list[str]) -> dict[str, float]:
    """Return how far each method is drawn from the middle of its place."""
    if len(methods) == 1:
        return {methods[0]: 0.0}
    return dict(zip(methods, np.linspace(-0.3, 0.3, len(methods)), strict=True))


def _forest(axes: Axes, bars: Sequence[_Bar], places: int) -> None:
    for bar in bars:
        _draw(axes, bar)
    axes.set_xlim(*shown_span([bar.difference for bar in bars]))
    axes.axhspan(places - 0.5, places + 0.5, color="#f2f2f2", zorder=0)
    for y in range(1, places):
        axes.axhline(y - 0.5, color="#cccccc", linewidth=0.6)
    axes.axvline(0, color=style("lora")[0], linewidth=1.2)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def shown_span(found: Sequence[Difference]) -> Interval:
    """Return the points to show.

    An interval over two seeds may be wider than a difference can be, and would leave nothing else to see, so
    that only those over items count.
    """
    ends = [0.0, *(100 * end for difference in found for end in difference.items)]
    margin = max(2.5, 0.15 * (max(ends) - min(ends)))
    return min(ends) - margin, max(ends) + margin


def _draw(axes: Axes, bar: _Bar) -> None:
    difference, y, result = bar
    colour, _ = style(result.method)
    if difference.items_and_seeds:
        axes.plot([100 * end for end in difference.items_and_seeds], [y, y], color=colour, linewidth=1.0)
    axes.plot(
        [100 * end for end in difference.items],
        [y, y],
        color=colour,
        linewidth=3.2,
        alpha=0.55,
        solid_capstyle="butt",
    )
    axes.plot(100 * difference.value, y, **look(result.method, result.mode), markersize=5.5)
