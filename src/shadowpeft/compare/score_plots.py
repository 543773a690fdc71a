"""Scores over trainable parameters and over training time, and the calibration of the detached models."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from shadowpeft.compare.method_result import MethodResult
from shadowpeft.compare.plot_style import (
    PANEL_LETTERS,
    at,
    dashes,
    framed,
    legend_entries,
    legend_entry,
    look,
    panels,
    style,
)
from shadowpeft.compare.results import Results

_GREY = "#999999"


def parameters(results: Results) -> Figure | None:
    """Draw the score over trainable parameters; `None` if there are not several ranks."""
    shown = [
        result
        for result in results.select()
        if result.rank in results.ranks
        and result.method not in ("base", "full")
        and result.values("value")
        and result.mean("trainable")
    ]
    if len({result.rank for result in shown}) < 2:
        return None
    figure, found = panels(results, shown)
    for place, axes in found.items():
        here = at(shown, place)
        for name in dict.fromkeys(result.name for result in here):
            ranks = [result for result in here if result.name == name]
            _curve(axes, sorted(ranks, key=lambda result: result.rank))
        _label(axes, here, "trainable parameters")
        _log_ticks(axes, [result.mean("trainable") or 1.0 for result in here])
    title = "Score on the test split over trainable parameters: mean and single seeds"
    return framed(figure, title, legend_entries(shown))


def _curve(axes: Axes, ranks: Sequence[MethodResult]) -> None:
    """Draw the means of one method at several ranks as a curve, and its seeds as points."""
    method, mode = ranks[0].method, ranks[0].mode
    colour, _ = style(method)
    sizes = [result.mean("trainable") or 0.0 for result in ranks]
    for size, result in zip(sizes, ranks, strict=True):
        values = [100 * value for value in result.values("value")]
        axes.plot([size] * len(values), values, ".", color=colour, alpha=0.35, markersize=4)
    means = [100 * (result.mean("value") or 0.0) for result in ranks]
    axes.plot(sizes, means, **look(method, mode), linestyle=dashes(mode), markersize=5.5, linewidth=1.4)


def _label(axes: Axes, results: Sequence[MethodResult], x: str) -> None:
    axes.set(xlabel=x, ylabel=f"{results[0].records[0]['metric']}, %")


def _log_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    """Mark a logarithmic axis with the doublings between its ends, written as 300 k or 1.2 M."""
    axes.set_xscale("log")
    low, doublings = min(sizes), float(np.log2(max(sizes) / min(sizes)))
    step = max(1, round(doublings / 3))  # about four ticks
    ticks = [low * 2.0 ** (step * k) for k in range(int(doublings / step + 0.5) + 1)]
    axes.set_xticks(ticks, [_short_number(tick) for tick in ticks])
    axes.minorticks_off()


def _short_number(number: float) -> str:
    if number >= 1e6:
        return f"{number / 1e6:.3g} M"
    return f"{number / 1e3:.3g} k"


class _Timed(NamedTuple):
    """A result and the seconds of its training."""

    result: MethodResult
    seconds: float


def training_time(results: Results) -> Figure | None:
    """Draw the score of attached models over training time; detached models come from the same training."""
    chosen = [
        (result, results.cost(result))
        for result in results.select(rank=results.rank)
        if result.method != "base" and result.mode == "attached"
    ]
    timed = [
        _Timed(result, seconds)
        for result, cost in chosen
        if (seconds := cost["train_seconds"]) and result.values("value")
    ]
    if not timed:
        return None
    note = "timed alone" if all(cost["alone"] for _, cost in chosen) else "timed in the study"
    shown = [result for result, _ in timed]
    figure, found = panels(results, shown)
    for place, axes in found.items():
        here = [point for point in timed if (point.result.model, point.result.task) == place]
        for point in here:
            _error_bar(axes, point)
        _label(axes, [point.result for point in here], "training time, s")
        axes.set_xlim(left=0, right=1.1 * max(point.seconds for point in here))
    title = (
        f"Score of the attached models on the test split over the time of {results.study.steps:,} "
        f"training steps ({note}): mean and 95 % over seeds"
    )
    return framed(figure, title, legend_entries(shown, joined=False))


def _error_bar(axes: Axes, point: _Timed) -> None:
    value = point.result.estimate("value")
    if value is None:
        return
    axes.errorbar(
        point.seconds,
        100 * value.mean,
        yerr=None if value.margin is None else 100 * value.margin,
        **look(point.result.method, point.result.mode),
        markersize=7,
        capsize=2.5,
        linewidth=1,
    )


class _Bins(NamedTuple):
    """The filled bins of confidence: how many answers each has, their mean confidence, and their accuracy."""

    answers: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray


def calibration(results: Results) -> Figure | None:
    """Draw the accuracy of detached models over their confidence; `None` if there is no such classifier."""
    binned = {
        result: bins
        for result in results.select(rank=results.rank)
        if result.mode == "detached" and (bins := _pooled_bins(result)) is not None
    }
    if not binned:
        return None
    figure, found = panels(results, list(binned), height=3.6)
    for place, axes in found.items():
        here = at(binned, place)
        axes.plot([0, 100], [0, 100], color=_GREY, linestyle=":", linewidth=1)
        for result in here:
            _reliability(axes, result.method, binned[result])
        errors = [
            f"{result.method}\u00a0{100 * (result.mean('calibration.ece') or 0):.1f}" for result in here
        ]
        errors_wrapped = textwrap.wrap(f"ECE, %: {', '.join(errors)}", PANEL_LETTERS)
        axes.set_title("\n".join([axes.get_title(), *errors_wrapped]))
        axes.set(
            xlabel="confidence of the answer, %",
            ylabel="answers correct, %",
            xlim=(0, 100),
            ylim=(0, 100),
            aspect="equal",
        )
    methods = dict.fromkeys(result.method for result in binned)
    ideal = Line2D([], [], color=_GREY, linestyle=":", label="perfectly calibrated")
    return framed(
        figure,
        "Calibration of the detached models, in ten bins of confidence",
        [*(legend_entry(method) for method in methods), ideal],
        note="size: share of the answers in the bin",
    )


def _reliability(axes: Axes, method: str, bins: _Bins) -> None:
    colour, marker = style(method)
    axes.plot(100 * bins.confidence, 100 * bins.accuracy, color=colour, linewidth=1)
    axes.scatter(
        100 * bins.confidence,
        100 * bins.accuracy,
        s=10 + 130 * bins.answers / bins.answers.sum(),
        color=colour,
        alpha=0.75,
        marker=marker,
    )


def _pooled_bins(result: MethodResult) -> _Bins | None:
    """Pool the filled bins of a result's seeds; `None` if it has none."""
    seeds = [record["calibration"]["bins"] for record in result.records if record.get("calibration")]
    if not seeds:
        return None
    # Seeds, bins, and three numbers of each bin; those of an empty bin may be missing in the file.
    table = np.array([[[number or 0.0 for number in bin] for bin in bins] for bins in seeds], dtype=float)
    counts, confidence, accuracy = table.transpose(2, 0, 1)
    answers = counts.sum(0)
    filled = answers > 0
    return _Bins(
        answers=answers[filled],
        confidence=(counts * confidence).sum(0)[filled] / answers[filled],
        accuracy=(counts * accuracy).sum(0)[filled] / answers[filled],
    )
