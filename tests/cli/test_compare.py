"""`shadowpeft compare`: what it prints when a study is stopped, unfinished or failed."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.noted_cells import (
    failing,
    go,
    interrupted,
    measured,
    no_report,
    written,
)

from shadowpeft import cli
from shadowpeft.compare import run
from shadowpeft.compare.study import Study


def words(settings: Study, tmp_path: Path) -> list[str]:
    (tmp_path / "study.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    return ["compare", "--config", str(tmp_path / "study.yaml")]


def test_ctrl_c_says_how_to_go_on(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_report", lambda: no_report)
    monkeypatch.setattr(run, "_run_cell", lambda: interrupted)
    command = words(small, tmp_path)
    monkeypatch.setattr(sys, "argv", ["shadowpeft", *command])
    assert cli.main(command) == 130
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].endswith(
        f"go on with the same command: shadowpeft compare --config {tmp_path}/study.yaml"
    )
    assert said.out == ""
    assert len(written(small)) == 2
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert said.out.startswith("method  mode  cells")
    assert (Path(small.output) / "table.md").read_text(
        encoding="utf-8"
    ) == f"{len(written(small))} records of 27 cells\n"
    assert said.err.splitlines()[0].startswith("[3/27] search ")
    monkeypatch.setattr(run, "_run_cell", pytest.fail)
    (Path(small.output) / "table.md").unlink()
    assert cli.main([*command, "--report-only", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["cells"], Path(summary["table"]).exists()) == (27, 27, True)


def test_a_report_of_an_unfinished_study_says_what_is_left(small, tmp_path, monkeypatch, capsys):
    """Catches cells called impossible that nobody has run yet, and a reader who is not told how many they are
    and how to go on."""
    monkeypatch.setattr(run, "_report", lambda: no_report)
    command = [*words(small, tmp_path), "--report-only"]
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    capsys.readouterr()
    assert cli.main(command) == 0
    assert capsys.readouterr().err.splitlines()[1:] == [
        "shadowpeft compare: the study is not over: 25 of 27 cells have yet to run (8 of the stage "
        "search, 11 of the stage final, 6 of the "
        "stage cost); the same command without --report-only goes on with them"
    ]
    go(small, failing)
    capsys.readouterr()
    assert cli.main(command) == 0
    said = capsys.readouterr().err
    assert "3 of 27 cells could not be run, such as final" in said
    assert "yet to run" not in said


def test_report_only_needs_a_study(small, tmp_path, capsys):
    assert cli.main([*words(small, tmp_path), "--report-only"]) == 2
    assert "there is no study in" in capsys.readouterr().err


def test_nothing_measured_is_a_failure(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_report", lambda: no_report)
    monkeypatch.setattr(run, "_run_cell", lambda: lambda cell, settings: 1 / 0)
    assert cli.main(words(replace(small, methods="lora"), tmp_path)) == 1
    assert "4 of 10 cells failed" in capsys.readouterr().err


def test_grids_that_were_too_narrow_are_told(small, tmp_path, monkeypatch, capsys):
    """Catches a study that ends in silence though better rates may lie beyond, or speaks too early."""
    monkeypatch.setattr(run, "_report", lambda: no_report)
    monkeypatch.setattr(run, "_run_cell", lambda: interrupted)
    command = words(replace(small, methods="lora"), tmp_path)
    assert cli.main(command) == 130
    assert "at the edge" not in capsys.readouterr().err
    monkeypatch.setattr(run, "_run_cell", lambda: measured)
    assert cli.main(command) == 0
    assert (
        "shadowpeft compare: searches whose best learning rate is at the edge of those tried: 2, such as "
        f"0.0005, the highest of lora on {small.model} and clinc150; the best may lie beyond: give a new "
        "study more extensions, or other rates under search" in capsys.readouterr().err.splitlines()
    )
    assert cli.main([*command, "--report-only", "--json"]) == 0
    at = json.loads(capsys.readouterr().out)["at_edge"][0]
    place = {"model": small.model, "task": "clinc150", "method": "lora"}
    assert at == {**place, "side": "highest", "learning_rate": 0.0005}
