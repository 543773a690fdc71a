"""Pictures as data of an HTML page, so that a report is one file that needs nothing else."""

import base64
import io

import matplotlib

# Before pyplot is imported, which else may look for a screen.
matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The colours of Okabe and Ito, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
GREY = "#7f7f7f"


def new_axes(width: float = 6.4) -> tuple[Figure, Axes]:
    """Return a figure with one panel, open at the top and on the right; wider for a legend beside it."""
    figure, axes = plt.subplots(figsize=(width, 4.2))
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_data(figure: Figure) -> str:
    """Return a figure as a PNG in a `data:` address, and close it."""
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
