"""How a study's pictures look: colours, markers, legends, titles, and one panel for each model and task."""

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import matplotlib

from shadowpeft.compare.method_result import MethodResult
from shadowpeft.compare.model_names import short
from shadowpeft.compare.results import Results
from shadowpeft.reporting.tables import STYLES, plural

# Before pyplot is imported, which else may look for a screen.
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
PANEL_LETTERS = 36  # letters of a title that fit above a panel
Place = tuple[str, str]  # model, task


def study_style() -> AbstractContextManager[object]:
    """Return the context in which figures are drawn and saved."""
    return plt.rc_context(_SETTINGS)


def style(method: str) -> tuple[str, str]:
    """Return the colour and the marker of a method."""
    return STYLES.get(method, ("#999999", "p"))


def look(method: str, mode: str) -> dict[str, Any]:
    """Return the look of a method's points; the marker of a detached model is hollow."""
    colour, marker = style(method)
    return {"color": colour, "marker": marker, "markerfacecolor": "white" if mode == "detached" else colour}


def dashes(mode: str) -> Any:
    """Return the style of a curve; that of a detached model is dashed."""
    if mode == "detached":
        return "--"
    return "-"


def legend_entry(method: str, mode: str = "attached", joined: bool = True) -> Line2D:
    """Return the entry of a method in a legend; `joined` if its points are joined by a curve."""
    label = method if mode == "attached" else f"{method} {mode}"
    linestyle: Any = dashes(mode) if joined else "none"
    return Line2D([], [], **look(method, mode), linestyle=linestyle, label=label)


def legend_entries(results: Iterable[MethodResult], joined: bool = True) -> list[Line2D]:
    """Return the entries of all methods and modes among some results."""
    kinds = dict.fromkeys((result.method, result.mode) for result in results)
    return [legend_entry(method, mode, joined) for method, mode in kinds]


def counts(results: Sequence[MethodResult]) -> str:
    """Say how many items and seeds results have; the base, which may need only one seed, does not count."""
    items = sorted({result.items for result in results})
    seeds = sorted({len(result.records) for result in results if result.method != "base"} or {1})
    return f"{span(items)} items, {span(seeds)} {plural(seeds[-1], 'seed')}"


def span(numbers: Sequence[int]) -> str:
    """Write the first and the last of sorted numbers, or the only one."""
    low, high = f"{numbers[0]:,}", f"{numbers[-1]:,}"
    if len(numbers) == 1:
        return low
    return f"{low} to {high}"


def framed(figure: Figure, title: str, entries: list[Line2D], note: str | None = None) -> Figure:
    """Put the title above the panels and the legend below them, each as wide as the figure allows."""
    width = figure.get_size_inches()[0]
    figure.suptitle(textwrap.fill(title, int(11 * width)))
    figure.legend(handles=entries, loc="outside lower center", ncols=max(2, int(width / 2.6)), title=note)
    return figure


def wrapped(title: str) -> str:
    """Break a title that is too long for one panel: names of models have any length."""
    return textwrap.fill(title, PANEL_LETTERS)


def at(results: Iterable[MethodResult], place: Place) -> list[MethodResult]:
    """Return the results of one model and task."""
    return [result for result in results if (result.model, result.task) == place]


def panels(
    results: Results, shown: Sequence[MethodResult], width: float = 3.3, height: float = 3.0
) -> tuple[Figure, dict[Place, Axes]]:
    """Lay out one panel for each model (down) and task (across), each with a title."""
    models = list(dict.fromkeys(result.model for result in shown))
    tasks = list(dict.fromkeys(result.task for result in shown))
    size = (max(6.4, 0.6 + width * len(tasks)), 1.6 + height * len(models))
    figure, grid = plt.subplots(len(models), len(tasks), figsize=size, squeeze=False)
    # Shortened among all models of the study, so that a model has one name in every picture and table.
    name = short(results.models)
    found = {}
    for row, model in enumerate(models):
        for column, task in enumerate(tasks):
            here = at(shown, (model, task))
            if not here:
                grid[row, column].set_axis_off()
                continue
            found[model, task] = grid[row, column]
            grid[row, column].set_title(f"{wrapped(f'{name(model)}, {task}')}\n{counts(here)}")
    return figure, found
