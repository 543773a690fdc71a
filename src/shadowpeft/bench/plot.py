"""The picture of a run: a bar for each method's time, with its spread, and one for its peak memory where that is known."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from shadowpeft.bench.record import Row
from shadowpeft.reporting.tables import STYLES
from shadowpeft.storage import atomic

_COLOURS = {
    **{method: colour for method, (colour, _) in STYLES.items()},
    "base-chunked": STYLES["base"][0],
    "lora-chunked": STYLES["lora"][0],
    "shadow-peft": STYLES["shadow-paper"][0],
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows of one run as a PNG file.

    Raises:
        CheckpointError: it cannot be written.
    """
    shapes = list(dict.fromkeys(row["shape"] for row in rows if row["ms"] is not None))
    if not shapes:
        return
    groups = [[row for row in rows if row["shape"] == shape and row["ms"] is not None] for shape in shapes]
    width = 2 if any(row["peak_gb"] is not None for row in rows) else 1
    height = sum(1 + 0.28 * len(group) for group in groups)
    with plt.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}
    ):
        figure, axes = plt.subplots(
            len(groups), width, figsize=(5 * width + 1, height + 0.5), squeeze=False, constrained_layout=True,
            height_ratios=[1 + len(group) for group in groups],
        )  # fmt: skip
        for row_of_axes, group in zip(axes, groups, strict=True):
            _bars(
                row_of_axes[0],
                group,
                "ms",
                f"{group[0]['shape']}: ms, {group[0]['batch']} x {group[0]['tokens']:,} tokens",
            )
            if width == 2:
                _bars(row_of_axes[1], group, "peak_gb", "peak over the weights, GB")
        atomic.write_together(
            path.absolute().parent, {path.name: lambda where: figure.savefig(where, format="png")}
        )
        plt.close(figure)


def _bars(axes: Axes, group: Sequence[Row], field: str, title: str) -> None:
    values = [row[field] or 0.0 for row in group]
    spread = [(row["ms_spread"] or 0.0) / 2 for row in group] if field == "ms" else None
    names, colours = [row["name"] for row in group], [_COLOURS[row["method"]] for row in group]
    bars = axes.barh(
        names,
        values,
        xerr=spread,
        color=colours,
        hatch=["//" * row["compiled"] for row in group],
        edgecolor="white",
    )
    axes.bar_label(bars, [f"{value:.4g}" for value in values], padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title)
