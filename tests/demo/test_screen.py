"""What the demo shows: every number on a narrow screen, and the table before the report."""

import errno
import io
import json

import pytest
from rich.console import Console

from shadowpeft.cli import main
from shadowpeft.demo import screen
from shadowpeft.demo.run import DemoResult, MethodResult


def test_the_table_does_not_wait_for_the_report(monkeypatch, tmp_path, capsys):
    """Catches minutes of work lost to a full disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    methods = [MethodResult("base", 0.5, 2, 0, None, float("nan"), (1.0, 2.0))]
    monkeypatch.setattr(screen, "run", lambda *_: DemoResult(methods, {}, [], 2, 2, 1.0))
    monkeypatch.setattr(screen, "write_report", full)
    assert main(["demo", "--report", str(tmp_path / "report.html"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["methods"][0]["ms_per_answer"] is None


def test_the_table_shows_every_number_on_a_narrow_screen():
    """Catches numbers that end in three dots at 80 columns."""
    names = ["base", "LoRA", "pretrained shadow attached", "pretrained shadow detached"]
    methods = [MethodResult(name, 0.905, 1000, 2260224, 56.0, 41.0, (40.0, 44.0)) for name in names]
    console = Console(width=80, file=io.StringIO())
    console.print(screen.table(DemoResult(methods, {}, [], 1000, 31, 256.0)))
    shown = console.file.getvalue()
    assert (
        shown.count("2,260,224") == shown.count("90.5 ± 1.8 %") == shown.count("41 (40 to 44)") == len(names)
    )
    assert "…" not in shown
