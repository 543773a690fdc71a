"""The pictures of a simulation's report, as data of an HTML page."""

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shadowpeft.reporting.pictures import COLOURS, as_data, new_axes
from shadowpeft.simulate.measures import Figures

_MARKERS = "osD^vPX*"


def right_by_seconds(found: Mapping[str, Figures], robots: int) -> str:
    """Draw what is answered rightly over the mean seconds, a point for each strategy."""
    figure, axes = new_axes(width=8.4)
    for (name, one), colour, marker in zip(found.items(), cycle(COLOURS), cycle(_MARKERS), strict=False):
        axes.scatter(one.mean, 100 * one.right, 60, colour, marker=marker, label=name, zorder=3)
    axes.set(xlabel=f"mean seconds of an answer, {_fleet(robots)}", ylabel="answered rightly, %")
    axes.set_xlim(left=0)
    return _finished(figure, axes)


def cost_by_right(found: Mapping[str, Figures], robots: int) -> str:
    """Draw the price of 1,000 requests over what is answered wrongly, a point for each strategy."""
    figure, axes = new_axes(width=8.4)
    for (name, one), colour, marker in zip(found.items(), cycle(COLOURS), cycle(_MARKERS), strict=False):
        axes.scatter(100 * (1 - one.right), one.cost, 60, colour, marker=marker, label=name, zorder=3)
    axes.set(xlabel=f"not answered rightly, %, {_fleet(robots)}", ylabel="price of 1,000 requests")
    axes.set_ylim(bottom=0)
    return _finished(figure, axes)


def slowest_by_fleet(fleets: Sequence[int], found: Mapping[str, Sequence[Figures]]) -> str:
    """Draw the seconds that 99 % of the answers do not exceed over the size of the fleet."""
    figure, axes = new_axes(width=8.4)
    for (name, each), colour, marker in zip(found.items(), cycle(COLOURS), cycle(_MARKERS), strict=False):
        axes.plot(fleets, [one.p99 for one in each], color=colour, marker=marker, linewidth=1.4, label=name)
    axes.set(xlabel="robots", ylabel="seconds that 99 % of the answers do not exceed")
    axes.set_xscale("log")
    axes.set_xticks(fleets, [f"{robots:,}" for robots in fleets])
    axes.set_ylim(bottom=0)
    return _finished(figure, axes)


def _finished(figure: Figure, axes: Axes) -> str:
    """Put the names beside the picture, where they cover no point."""
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return as_data(figure)


def _fleet(robots: int) -> str:
    return "one robot" if robots == 1 else f"{robots:,} robots"
