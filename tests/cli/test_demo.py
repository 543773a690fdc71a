"""`shadowpeft demo`: a report that cannot be written is refused before any work."""

import os

import pytest

from shadowpeft.cli import main
from shadowpeft.demo import screen


def test_a_report_in_a_missing_folder_is_refused_before_work(tmp_path, capsys):
    assert main(["demo", "--report", str(tmp_path / "no" / "report.html")]) == 2
    assert "folder that exists" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(screen, "run", lambda *_: pytest.fail("the work began before the check"))
    assert main(["demo", "--report", str(tmp_path)]) == 2
    assert "is a folder; give a name in it" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["demo", "--report", str(tmp_path / "report.html")]) == 2
    assert "can be written" in capsys.readouterr().err
