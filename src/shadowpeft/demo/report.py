"""The demo's table and its report: one HTML file with the curves and the bars as pictures."""

import base64
import html
import io
import platform
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import torch
import transformers

import shadowpeft
from shadowpeft.demo.run import DemoResult, MethodResult

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HEADINGS = ("method", "accuracy", "trainable parameters", "training seconds", "ms per answer")
COLOURS = {
    "base": "#9aa0a6",
    "LoRA": "#c77c2e",
    "shadow attached": "#2f6fb3",
    "shadow detached": "#7fb0dc",
    "pretrained shadow attached": "#2e7d4f",
    "pretrained shadow detached": "#86c29b",
}


def cells(method: MethodResult) -> tuple[str, ...]:
    """Format one row of the table; the accuracy with its 95 % interval, the time with its quartiles."""
    margin = 1.96 * (method.accuracy * (1 - method.accuracy) / method.answered) ** 0.5
    low, high = method.ms_spread
    trainable = seconds = "-"
    if method.trainable:
        trainable = f"{method.trainable:,}"
    if method.train_seconds:
        seconds = f"{method.train_seconds:.0f}"
    return (
        method.name,
        f"{100 * method.accuracy:.1f} ± {100 * margin:.1f} %",
        trainable,
        seconds,
        f"{method.ms_per_answer:.0f} ({low:.0f} to {high:.0f})",
    )


def write_report(result: DemoResult, path: Path) -> None:
    """Write the report as one self-contained HTML file."""
    rows = [cells(method) for method in result.methods]
    names = [method.name for method in result.methods]
    answered = [
        [example["request"], example["right"], *(example[name] for name in names)]
        for example in result.examples
    ]
    page = _PAGE.format(
        table=_table(HEADINGS, rows),
        curves=_picture(_curves(result)),
        bars=_picture(_bars(result)),
        examples=_table(("request", "right answer", *names), answered),
        labels=result.labels,
        rows=result.test_rows,
        seconds=f"{result.seconds:.0f}",
        versions=_versions(),
    )
    path.write_text(page, encoding="utf-8")


def _versions() -> str:
    return (
        f"shadowpeft {shadowpeft.__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads"
    )


def _curves(result: DemoResult) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for name, curve in result.fits.items():
        # What is trained is the attached shadow.
        colour = COLOURS.get(name) or COLOURS[f"{name} attached"]
        axes.plot(curve.steps, curve.losses, label=name, color=colour, linewidth=1.6)
    axes.set(xlabel="optimiser step", ylabel="training loss", yscale="log")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _bars(result: DemoResult) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    names = [method.name for method in result.methods]
    heights = [100 * method.accuracy for method in result.methods]
    bars = axes.bar(
        [name.replace(" ", "\n") for name in names],
        heights,
        color=[COLOURS[name] for name in names],
        width=0.6,
    )
    axes.bar_label(bars, [f"{height:.1f}" for height in heights], padding=2)
    axes.set(ylabel="accuracy on held-out requests, %", ylim=(0, 105))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _picture(figure: plt.Figure) -> str:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>shadowpeft demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; font-size: .95rem; }}
th, td {{ text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top; }}
.wide {{ overflow-x: auto; }}
.pictures {{ display: flex; flex-wrap: wrap; gap: 1rem; }}
.pictures img {{ flex: 1 1 24rem; max-width: 100%; min-width: 0; }}
footer {{ color: #666; font-size: .85rem; margin-top: 2rem; }}
</style></head><body>
<h1>One small model, adapted to {labels} answers</h1>
<p>The embedded language model learns to name the intent of a request, and to hand over what is out of scope
by answering <code>[REMOTE]</code>. <b>LoRA</b> changes the model's own layers. The <b>shadow</b> is a small
network beside the untouched model: <b>attached</b> it corrects the model, <b>detached</b> it answers alone.
One shadow starts at random, one from a shadow that was <b>pretrained</b> on plain text and ships with the
model. All answer by the most likely of the {labels} labels, on {rows}
held-out requests. The base, which was not trained for this, gets its likelihoods calibrated by an empty
request, which suits it best.</p>
<div class="wide">{table}</div>
<h2>Training</h2>
<div class="pictures">
<img src="{curves}" alt="training loss by step"><img src="{bars}" alt="accuracy by method">
</div>
<p>The shadow's curve is its joint loss: the attached model's, plus the weighted loss of the shadow alone
(eq. 9).</p>
<h2>Some requests</h2>
<div class="wide">{examples}</div>
<footer>Made by <code>shadowpeft demo</code> in {seconds} s. ± is a 95 % interval over the requests; ms per
answer is the median (and the quartiles) of single greedy answers of four tokens, the models taking turns.
{versions}. Requests: CLINC150 (Larson et al. 2019, CC BY 3.0).</footer>
</body></html>
"""
