"""The picture of a run: a bar for each method's time, with its spread, and one for its peak memory."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from shadowpeft.bench.measurements import Measurement
from shadowpeft.bench.report import own_type
from shadowpeft.reporting.tables import STYLES
from shadowpeft.storage import atomic

_COLOURS = {
    **{method: colour for method, (colour, _) in STYLES.items()},
    "base-chunked": STYLES["base"][0],
    "lora-chunked": STYLES["lora"][0],
    "lora-liger": STYLES["lora"][0],
    "shadow-peft": STYLES["shadow-paper"][0],
}


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw the measurements of one run as a PNG file; without a measured time, draw nothing.

    Raises:
        CheckpointError: it cannot be written.
    """
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        if measurement["ms"] is not None:
            groups.setdefault(measurement["shape"], []).append(measurement)
    if not groups:
        return
    width = 1 + any(measurement["peak_gb"] is not None for measurement in measurements)
    height = sum(1 + 0.28 * len(group) for group in groups.values())
    with plt.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.dpi": 150}
    ):
        figure, axes = plt.subplots(
            len(groups), width, figsize=(5 * width + 1, height + 0.5), squeeze=False, constrained_layout=True,
            height_ratios=[1 + len(group) for group in groups.values()],
        )  # fmt: skip
        for panels, (shape, group) in zip(axes, groups.items(), strict=True):
            title = f"{shape}: ms, {group[0]['batch']} x {group[0]['tokens']:,} tokens"
            _bars(panels[0], group, "ms", title=title)
            if width == 2:
                _bars(panels[1], group, "peak_gb", title="peak over the weights, GB")
        atomic.write_together(
            path.absolute().parent, {path.name: lambda where: figure.savefig(where, format="png")}
        )
        plt.close(figure)


def _bars(axes: Axes, group: Sequence[Measurement], field: str, title: str) -> None:
    values = [entry[field] or 0.0 for entry in group]
    spread = None
    if field == "ms":
        spread = [(entry["ms_spread"] or 0.0) / 2 for entry in group]
    bars = axes.barh(
        [", ".join(filter(None, (entry["name"], own_type(entry)))) for entry in group],
        values,
        xerr=spread,
        color=[_COLOURS[entry["method"]] for entry in group],
        hatch=["//" * entry["compiled"] for entry in group],
        edgecolor="white",
    )
    axes.bar_label(bars, [f"{value:.4g}" for value in values], padding=4, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_title(title)
