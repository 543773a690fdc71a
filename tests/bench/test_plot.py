"""The picture of a run."""

import pytest

pytest.importorskip("matplotlib")
from shadowpeft.bench import plot


def measured(method: str, ms: float | None, **changes: object) -> dict:
    entry = {"method": method, "name": method, "shape": "8b", "batch": 8, "tokens": 1024, "compiled": False}
    typed = {"dtype": "bfloat16", "adapter_dtype": "float32", "trained_dtype": "float32"}
    return {**entry, **typed, "ms": ms, "ms_spread": 2.0, "peak_gb": None, **changes}


def drawn(monkeypatch, path, entries):
    """Return the panels of the picture, each as its title, its names and the lengths of its bars."""
    kept = []
    monkeypatch.setattr(plot.plt, "close", kept.append)
    plot.draw(entries, path)
    (figure,) = kept
    panels = {}
    for axes in figure.axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        panels[axes.get_title()] = dict(zip(names, [bar.get_width() for bar in axes.patches], strict=True))
    return panels


def test_every_shape_has_its_panels(tmp_path, monkeypatch):
    """Catches bars of two shapes in one panel, memory drawn as time, and a method without a time."""
    entries = [
        measured("lora", 400.0, peak_gb=30.0),
        measured("shadow", 368.0, peak_gb=24.0),
        measured("dora", None),
        measured("lora", 4.0, shape="tiny", batch=1, tokens=8),
    ]
    assert drawn(monkeypatch, tmp_path / "run.png", entries) == {
        "8b: ms, 8 x 1,024 tokens": {"lora, float32": 400.0, "shadow, float32": 368.0},
        "tiny: ms, 1 x 8 tokens": {"lora, float32": 4.0},
        "peak over the weights, GB": {"lora, float32": 0.0},
    }
    assert (tmp_path / "run.png").stat().st_size > 1000


def test_nothing_is_drawn_without_a_time(tmp_path):
    """Catches an empty picture beside a run in which every method failed."""
    plot.draw([measured("lora", None)], tmp_path / "run.png")
    assert list(tmp_path.iterdir()) == []
