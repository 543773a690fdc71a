"""The pictures of a study: differences to LoRA, score over parameters and over training time, calibration of the detached models."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from shadowpeft.compare.results import Line, Results, Row, short
from shadowpeft.compare.study import Study
from shadowpeft.reporting.stats import Difference, Interval
from shadowpeft.reporting.tables import STYLES
from shadowpeft.storage import atomic

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

_SETTINGS: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
}
_MODES = ("attached", "detached")
_PANEL = 36  # letters of a title that fit above a panel


def draw(study: Study, rows: Iterable[Row], folder: str | Path) -> list[Path]:
    """Draw what the rows so far allow for, as PNG files in a folder.

    Args:
        study: the study.
        rows: its rows so far.
        folder: where to write `differences.png`, `parameters.png`, `training_time.png` and `calibration.png`.

    Returns:
        The files that were drawn: there are no differences without LoRA, no scaling with one rank, no calibration without a detached
        classifier.

    Raises:
        DataError: rows that should be comparable are of different items.
        CheckpointError: a file cannot be written.
    """
    results = Results(study, rows)
    pictures = {
        "differences.png": _differences,
        "parameters.png": _parameters,
        "training_time.png": _training_time,
        "calibration.png": _calibration,
    }
    with plt.rc_context(_SETTINGS):
        figures = {name: figure for name, make in pictures.items() if (figure := make(results)) is not None}
        atomic.write_together(Path(folder), {name: _saver(figure) for name, figure in figures.items()})
        for figure in figures.values():
            plt.close(figure)
    return [Path(folder) / name for name in figures]


def _saver(figure: Figure) -> Callable[[Path], object]:
    return lambda path: figure.savefig(path, format="png")


def _style(method: str) -> tuple[str, str]:
    return STYLES.get(method, ("#999999", "p"))


def _look(method: str, mode: str) -> dict[str, Any]:
    """Give the colour and marker of a method; the marker of a detached model is hollow."""
    colour, marker = _style(method)
    return {"color": colour, "marker": marker, "markerfacecolor": "white" if mode == "detached" else colour}


def _entry(method: str, mode: str = "attached", joined: bool = True) -> Line2D:
    """Make an entry of a legend; the line of a detached model is dashed."""
    label = method if mode == "attached" else f"{method} {mode}"
    return Line2D([], [], **_look(method, mode), linestyle=_dashes(mode) if joined else "none", label=label)


def _dashes(mode: str) -> Any:
    return "--" if mode == "detached" else "-"


def _about(lines: Sequence[Line]) -> str:
    """Say how many items and seeds lines are of."""
    items = sorted({line.items for line in lines})
    seeds = sorted({len(line.rows) for line in lines if line.method != "base"} or {1})
    count = f"{items[0]:,}" if len(items) == 1 else f"{items[0]:,} to {items[-1]:,}"
    many = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return f"{count} items, {many} seed{'s' * (seeds[-1] > 1)}"


def _frame(figure: Figure, title: str, entries: list[Line2D], note: str | None = None) -> Figure:
    """Put the title above the panels and the legend below them, each as wide as the figure allows."""
    width = figure.get_size_inches()[0]
    figure.suptitle(textwrap.fill(title, int(11 * width)))
    figure.legend(handles=entries, loc="outside lower center", ncols=max(2, int(width / 2.6)), title=note)
    return figure


def _wrapped(title: str) -> str:
    """Break what is too long for one panel into lines: names of models are of any length, and would reach into the next panel."""
    return textwrap.fill(title, _PANEL)


def _differences(results: Results) -> Figure | None:
    """Draw the forest plot; the base stays out of it, being too far from LoRA to show anything else beside it."""
    lines = [
        line
        for line in results.select(rank=results.rank)
        if line.method != "base" and results.difference(line)
    ]
    modes = [mode for mode in _MODES if any(line.mode == mode for line in lines)]
    if not lines:
        return None
    places = list(dict.fromkeys((line.model, line.task) for line in lines))
    methods = list(dict.fromkeys(line.method for line in lines))
    name = short(results.models)
    labels = [
        f"{_wrapped(name(model))}\n{task}\n{_about([line for line in lines if (line.model, line.task) == (model, task)])}"
        for model, task in places
    ]
    height = max(0.2 * len(methods) + 0.15, *(0.05 + 0.5 / 3 * (1 + label.count("\n")) for label in labels))
    size = (3.2 + 4.2 * len(modes), 2.1 + height * (len(places) + (len(places) > 1)))
    figure, panels = plt.subplots(1, len(modes), figsize=size, sharey=True, squeeze=False)
    for axes, mode in zip(panels[0], modes, strict=True):
        chosen = [line for line in lines if line.mode == mode]
        _forest(axes, results, chosen, places, methods)
        axes.set(xlabel="difference to LoRA, points", title=f"{mode} models")
    rows = [*labels, _average_label(results, methods)] if len(places) > 1 else labels
    panels[0, 0].set_yticks(range(len(rows)), rows)
    panels[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    bars = [
        Line2D([], [], color="#555555", linewidth=3.2, label="95 %, other test items"),
        Line2D([], [], color="#555555", linewidth=1.0, label="95 %, other test items and seeds"),
    ]
    title = f"Share of test items answered correctly: difference to LoRA of rank {results.rank}"
    return _frame(
        figure,
        title,
        [*(_entry(method, joined=False) for method in methods), *bars],
        "A line that reaches the edge goes on beyond it.",
    )


def _average_label(results: Results, methods: Sequence[str]) -> str:
    counts = sorted(
        {
            average.difference.cells
            for average in results.averages()
            if average.difference and average.method in methods
        }
    )
    return f"average of\n{counts[0] if len(counts) == 1 else f'{counts[0]} to {counts[-1]}'} cells"


def _forest(
    axes: Axes, results: Results, lines: Sequence[Line], places: list[tuple[str, str]], methods: list[str]
) -> None:
    offsets = dict(
        zip(methods, np.linspace(-0.3, 0.3, len(methods)) if len(methods) > 1 else [0.0], strict=True)
    )
    drawn = []
    for line in lines:
        found = results.difference(line)
        assert found is not None, "lines without a difference are not drawn"
        drawn.append((found, places.index((line.model, line.task)) + offsets[line.method], line))
    for average in results.averages() if len(places) > 1 else []:
        if average.difference and average.method in offsets and average.mode == lines[0].mode:
            drawn.append((average.difference, len(places) + offsets[average.method], average.lines[0]))
    for found, y, line in drawn:
        _bar(axes, found, y, line)
    axes.set_xlim(*_span([found for found, _, _ in drawn]))
    axes.axhspan(len(places) - 0.5, len(places) + 0.5, color="#f2f2f2", zorder=0)
    for y in range(1, len(places)):
        axes.axhline(y - 0.5, color="#cccccc", linewidth=0.6)
    axes.axvline(0, color=_style("lora")[0], linewidth=1.2)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


def _span(found: Sequence[Difference]) -> Interval:
    """Give the points to show: an interval over two seeds may be wider than a difference can be, and would leave nothing else to see."""
    ends = [0.0, *(100 * end for difference in found for end in difference.items)]
    margin = max(2.5, 0.15 * (max(ends) - min(ends)))
    return min(ends) - margin, max(ends) + margin


def _bar(axes: Axes, found: Difference, y: float, line: Line) -> None:
    colour, _ = _style(line.method)
    if found.items_and_seeds:
        axes.plot([100 * end for end in found.items_and_seeds], [y, y], color=colour, linewidth=1.0)
    axes.plot(
        [100 * end for end in found.items],
        [y, y],
        color=colour,
        linewidth=3.2,
        alpha=0.55,
        solid_capstyle="butt",
    )
    axes.plot(100 * found.value, y, **_look(line.method, line.mode), markersize=5.5)


def _facets(
    results: Results, lines: Sequence[Line], width: float = 3.3, height: float = 3.0
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Lay out one panel for each model (down) and task (across), each saying what it shows."""
    models, tasks = (
        list(dict.fromkeys(names))
        for names in ([line.model for line in lines], [line.task for line in lines])
    )
    size = (max(6.4, 0.6 + width * len(tasks)), 1.6 + height * len(models))
    figure, grid = plt.subplots(len(models), len(tasks), figsize=size, squeeze=False)
    name = short(results.models)  # all of them, so that a model has one name in every picture and table
    panels = {}
    for row, model in enumerate(models):
        for column, task in enumerate(tasks):
            here = [line for line in lines if (line.model, line.task) == (model, task)]
            if not here:
                grid[row, column].set_axis_off()
                continue
            panels[model, task] = grid[row, column]
            title = _wrapped(f"{name(model)}, {task}")
            grid[row, column].set_title(f"{title}\n{_about(here)}")
    return figure, panels


def _entries(lines: Sequence[Line], joined: bool = True) -> list[Line2D]:
    return [
        _entry(method, mode, joined)
        for method, mode in dict.fromkeys((line.method, line.mode) for line in lines)
    ]


def _parameters(results: Results) -> Figure | None:
    lines = [
        line
        for line in results.select()
        if line.rank in results.ranks and line.values("value") and line.mean("trainable")
    ]
    lines = [line for line in lines if line.method not in ("base", "full")]
    if len({line.rank for line in lines}) < 2:
        return None
    figure, panels = _facets(results, lines)
    for (model, task), axes in panels.items():
        here = [line for line in lines if (line.model, line.task) == (model, task)]
        for kind in dict.fromkeys(line.name for line in here):
            _curve(axes, sorted((line for line in here if line.name == kind), key=lambda line: line.rank))
        _label(axes, here, "trainable parameters")
        _log_ticks(axes, [float(line.mean("trainable") or 1) for line in here])
    return _frame(
        figure, "Score on the test split over trainable parameters: mean and single seeds", _entries(lines)
    )


def _curve(axes: Axes, lines: Sequence[Line]) -> None:
    look = _look(lines[0].method, lines[0].mode)
    sizes = [line.mean("trainable") or 0.0 for line in lines]
    for size, line in zip(sizes, lines, strict=True):
        values = [100 * value for value in line.values("value")]
        axes.plot([size] * len(values), values, ".", color=look["color"], alpha=0.35, markersize=4)
    means = [100 * (line.mean("value") or 0.0) for line in lines]
    axes.plot(sizes, means, **look, linestyle=_dashes(lines[0].mode), markersize=5.5, linewidth=1.4)


def _label(axes: Axes, lines: Sequence[Line], x: str) -> None:
    axes.set(xlabel=x, ylabel=f"{lines[0].rows[0]['metric']}, %")


def _log_ticks(axes: Axes, sizes: Sequence[float]) -> None:
    """Mark a logarithmic axis with the doublings between its ends, written as 300 k or 1.2 M."""
    axes.set_xscale("log")
    low, high = min(sizes), max(sizes)
    step = max(1, round(np.log2(high / low) / 3)) if high > low else 1
    ticks = [low * 2.0 ** (step * k) for k in range(int(np.log2(high / low) / step + 0.5) + 1)]
    axes.set_xticks(
        ticks, [f"{tick / 1e6:.3g} M" if tick >= 1e6 else f"{tick / 1e3:.3g} k" for tick in ticks]
    )
    axes.minorticks_off()


def _training_time(results: Results) -> Figure | None:
    """Draw score over training time, of attached models: the detached ones are of the same training."""
    chosen = [
        line
        for line in results.select(rank=results.rank)
        if line.method != "base" and line.mode == "attached"
    ]
    found = [(line, results.cost(line)) for line in chosen]
    points = [
        (line, cost["train_seconds"])
        for line, cost in found
        if cost["train_seconds"] and line.values("value")
    ]
    if not points:
        return None
    alone = all(cost["alone"] for line, cost in found)
    lines = [line for line, _ in points]
    steps = results.study.steps
    note = "timed alone" if alone else "timed in the study"
    figure, panels = _facets(results, lines)
    for (model, task), axes in panels.items():
        here = [(line, seconds) for line, seconds in points if (line.model, line.task) == (model, task)]
        for line, seconds in here:
            value = line.estimate("value")
            if value is not None:
                margin = None if value.margin is None else 100 * value.margin
                look = _look(line.method, line.mode)
                axes.errorbar(
                    seconds or 0.0,
                    100 * value.mean,
                    yerr=margin,
                    **look,
                    markersize=7,
                    capsize=2.5,
                    linewidth=1,
                )
        _label(axes, [line for line, _ in here], "training time, s")
        axes.set_xlim(left=0, right=1.1 * max(seconds or 0 for _, seconds in here))
    title = f"Score of the attached models on the test split over the time of {steps:,} training steps ({note}): mean and 95 % over seeds"
    return _frame(figure, title, _entries(lines, joined=False))


def _calibration(results: Results) -> Figure | None:
    lines = [
        line
        for line in results.select(rank=results.rank)
        if line.mode == "detached" and _bins(line) is not None
    ]
    if not lines:
        return None
    figure, panels = _facets(results, lines, height=3.6)
    for (model, task), axes in panels.items():
        here = [line for line in lines if (line.model, line.task) == (model, task)]
        axes.plot([0, 100], [0, 100], color="#999999", linestyle=":", linewidth=1)
        errors = []
        for line in here:
            bins, (colour, marker) = _bins(line), _style(line.method)
            assert bins is not None, "lines without bins are not drawn"
            count, confidence, accuracy = bins
            axes.plot(100 * confidence, 100 * accuracy, color=colour, linewidth=1)
            axes.scatter(
                100 * confidence,
                100 * accuracy,
                s=10 + 130 * count / count.sum(),
                color=colour,
                alpha=0.75,
                marker=marker,
            )
            errors.append(f"{line.method}\u00a0{100 * (line.mean('calibration.ece') or 0):.1f}")
        axes.set_title("\n".join([axes.get_title(), *textwrap.wrap(f"ECE, %: {', '.join(errors)}", _PANEL)]))
        axes.set(
            xlabel="confidence of the answer, %",
            ylabel="answers correct, %",
            xlim=(0, 100),
            ylim=(0, 100),
            aspect="equal",
        )
    ideal = Line2D([], [], color="#999999", linestyle=":", label="perfectly calibrated")
    methods = dict.fromkeys(line.method for line in lines)
    entries = [*(_entry(method) for method in methods), ideal]
    return _frame(
        figure,
        "Calibration of the detached models, in ten bins of confidence",
        entries,
        "size: share of the answers in the bin",
    )


def _bins(line: Line) -> tuple[Any, Any, Any] | None:
    """Pool the filled bins of a line's seeds: count, mean confidence, accuracy."""
    seeds = [row["calibration"]["bins"] for row in line.rows if row.get("calibration")]
    if not seeds:
        return None
    table = np.array([[[number or 0.0 for number in bin] for bin in bins] for bins in seeds], dtype=float)
    count = table[:, :, 0].sum(0)
    filled = count > 0
    confidence, accuracy = (
        (table[:, :, 0] * table[:, :, field]).sum(0)[filled] / count[filled] for field in (1, 2)
    )
    return count[filled], confidence, accuracy
