"""What the demo shows: every number on a narrow screen, and the table before the report."""

import errno
import io
import json
from typing import Any

import pytest
from rich.console import Console

from shadowpeft.cli import main
from shadowpeft.demo import screen
from shadowpeft.demo.run import DemoResult, MethodResult


def method(name: str, **changes: Any) -> MethodResult:
    values = {
        "accuracy": 0.905,
        "answered": 1000,
        "trainable": 2260224,
        "train_seconds": 56.0,
        "ms_per_answer": 41.0,
        "ms_spread": (40.0, 44.0),
    }
    return MethodResult(name=name, **{**values, **changes})


def demo_of(methods: list[MethodResult]) -> DemoResult:
    return DemoResult(methods=methods, fits={}, examples=[], test_rows=1000, labels=31, seconds=256.0)


def test_the_table_does_not_wait_for_the_report(monkeypatch, tmp_path, capsys):
    """Catches minutes of work lost to a full disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    base = method("base", ms_per_answer=float("nan"), trainable=0, train_seconds=None)
    monkeypatch.setattr(screen, "run", lambda *_: demo_of([base]))
    monkeypatch.setattr(screen, "write_report", full)
    assert main(["demo", "--report", str(tmp_path / "report.html"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["methods"][0]["ms_per_answer"] is None


def test_the_table_shows_every_number_on_a_narrow_screen():
    """Catches numbers that end in three dots at 80 columns."""
    names = ["base", "LoRA", "pretrained shadow attached", "pretrained shadow detached"]
    console = Console(width=80, file=io.StringIO())
    console.print(screen.table(demo_of([method(name) for name in names])))
    shown = console.file.getvalue()
    assert (
        shown.count("2,260,224") == shown.count("90.5 ± 1.8 %") == shown.count("41 (40 to 44)") == len(names)
    )
    assert "…" not in shown


def test_after_the_first_minute_it_says_how_long_it_will_take(monkeypatch, capsys):
    """Catches a user who cannot know whether to wait, and a forecast that is said at every step."""
    clock = iter([0.0, 59.0, 90.0, 120.0])
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    shown = screen.Screen()
    shown.console = Console(file=io.StringIO(), width=80)
    with shown.task("training", 10, share=0.2) as moved:
        moved(5, 10)
    assert "minutes" not in shown.console.file.getvalue()
    with shown.task("answering", 4, share=0.4) as moved:
        moved(1, 4)
        moved(2, 4)
    # 0.2 and a quarter of 0.4 are done in 90 seconds.
    assert shown.console.file.getvalue().count("about 5.0 minutes in all") == 1
