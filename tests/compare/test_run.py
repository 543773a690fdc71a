"""A study from its first cell to its report: what runs, what fails, and what an interruption leaves."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers.noted_cells import (
    called,
    failing,
    go,
    measured,
    no_report,
    record_file,
    written,
)

from shadowpeft.compare import choice, run
from shadowpeft.compare.cell import Cell, Setting
from shadowpeft.compare.study import Study
from shadowpeft.embedded import MODEL
from shadowpeft.errors import ConfigError


def test_a_study_runs_every_cell_once(small):
    result = go(small)
    keys = called(small)
    assert (result.cells, result.done, result.failed, result.missing) == (27, 27, {}, [])
    assert len(keys) == len(set(keys)) == 27
    chosen = choice.choices(small, written(small))
    assert chosen[str(MODEL), "clinc150", "lora"] == Setting(5e-4, head_learning_rate=3e-3)
    assert chosen[str(MODEL), "gsm8k", "lora"] == Setting(3e-4), "of losses the lower"
    row = written(small)[-1]
    assert (row["study"], row["device"], row["workers"]) == ("out", "cpu", 1)
    assert row["versions"]["torch"] == torch.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["time"])
    assert row["commit"] is None or re.fullmatch(r"[0-9a-f]{40}(\+changes)?", row["commit"])
    assert yaml.safe_load((Path(small.output) / "study.yaml").read_text(encoding="utf-8"))["seeds"] == 2
    go(small)
    assert called(small) == keys, "a complete study has nothing left to run"


def test_a_study_that_has_read_its_test_split_searches_nothing_more(small):
    """Catches settings that are chosen anew once test rows are known, where a later version tries others."""
    go(small)
    kept = record_file(small).read_text(encoding="utf-8").splitlines(keepends=True)
    lost = next(line for line in kept if '"stage": "search"' in line)
    record_file(small).write_text("".join(line for line in kept if line != lost), encoding="utf-8")
    before = called(small)
    with pytest.raises(ConfigError, match=r"has read its test split, and a trial .* has no record: search "):
        go(small)
    assert called(small) == before


def test_resume_after_a_kill(small, tmp_path):
    """Catches rows that were still in a buffer, and finished cells that run again."""
    (tmp_path / "study.yaml").write_text(small.to_yaml(), encoding="utf-8")
    code = (
        "import sys, yaml; from helpers import noted_cells as t; from shadowpeft.compare.study import Study;"
        "t.go(Study(**yaml.safe_load(open(sys.argv[1]))), t.killed_once)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    words = [sys.executable, "-c", code, str(tmp_path / "study.yaml")]
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = called(small)
    assert len(before) == 5
    assert {row["key"] for row in written(small)} == set(before[:4])
    assert go(small).done == 27
    assert sorted(called(small)) == sorted([*{row["key"] for row in written(small)}, before[4]]), (
        "only the one that was killed ran twice"
    )


def crashing(cell: Cell, settings: Study) -> list[dict]:
    """Lose two of three of LoRA's trials, the base's second runs, and all of the shadow's trials."""
    rows = measured(cell, settings)
    lost = (
        cell.learning_rate != 1e-3 if cell.method == "lora" else cell.seed == 1001 or cell.method == "shadow"
    )
    if cell.stage == "search" and lost:
        raise ZeroDivisionError("a fault")
    return rows


def test_finalists_that_fail_leave_a_study_that_ends(small, capsys):
    """Catches a study that waits for finalists it cannot have, or counts cells that there are not."""
    settings = replace(small, tasks="clinc150", trials=3, finalists=2, seeds=1)
    result = go(settings, crashing)
    seconds = [key for key in called(settings) if "seed=1001" in key]
    assert [key.split()[3] for key in seconds] == ["base", "lora", "base"]
    # nine trials of which LoRA lost two and the shadow all, three second runs of which the base lost both,
    # then base and LoRA
    assert (result.cells, result.done, len(result.failed), len(result.missing)) == (
        9 + 3 + 6,
        4 + 1 + 4,
        5 + 2,
        2,
    )
    assert choice.choices(settings, written(settings))[str(MODEL), "clinc150", "base"] == Setting(3e-2), (
        "by the first seed"
    )
    assert "[1/21] search " in (said := capsys.readouterr().err)
    assert "[16/18] cost " in said.splitlines()[-1]


def stopped_at_the_second_seed(cell: Cell, settings: Study) -> list[dict]:
    rows = measured(cell, settings)
    if sum("seed=1001" in key for key in called(settings)) == 2:
        raise KeyboardInterrupt
    return rows


def test_second_seeds_are_gone_on_with(small):
    """Catches finalists that run again, change or are left out when a study is stopped among them."""
    settings = replace(small, trials=3, finalists=2)
    with pytest.raises(KeyboardInterrupt):
        go(settings, stopped_at_the_second_seed)
    stopped_at = called(settings)[-1]
    result = go(settings)
    assert (result.cells, result.done) == (42, 42)
    assert len([key for key in called(settings) if "seed=1001" in key]) == 11
    assert sorted(called(settings)) == sorted([*{row["key"] for row in written(settings)}, stopped_at])


def test_failures_are_recorded_and_the_study_goes_on(small):
    """Catches a study that one cell without memory ends, and a method without a choice that is forgotten."""
    result = go(small, failing)
    by_status = {
        status: [row for row in written(small) if row["status"] == status]
        for status in ("ok", "out-of-memory", "crashed")
    }
    assert {row["key"].split()[0] for row in by_status["out-of-memory"]} == {"final"}
    assert by_status["out-of-memory"][0]["error"] == "CUDA out of memory. Tried to allocate 2 GiB"
    assert len(by_status["out-of-memory"]) == 2
    assert len(by_status["crashed"]) == 2, "both trials of the shadow"
    assert re.fullmatch(
        r"ZeroDivisionError: a fault \(noted_cells\.py:\d+: raise .*\)", by_status["crashed"][0]["error"]
    )
    assert len(result.failed) == 4
    assert sorted(key.split()[0] for key in result.missing) == ["cost", "final", "final"]
    assert all("gsm8k shadow" in key for key in result.missing)
    assert result.done + 4 + 3 == result.cells == 27


def test_the_test_split_is_not_read_twice(small):
    """Catches a retry that measures again on the test split what was measured on it, or that reopens the
    search."""
    go(small, failing)
    before = called(small)
    result = go(small, retry=False)
    assert called(small) == before, "recorded failures stay"
    result = go(small, retry=True)
    again = called(small)[len(before) :]
    assert sorted(key.split()[0] for key in again) == ["final", "final"]
    assert all("lora" in key and "seed=1 " in key for key in again)
    final = [
        row["key"]
        for row in written(small)
        if row["stage"] == "final" and row["status"] == "ok" and row["mode"] == "attached"
    ]
    assert len(final) == len(set(final))
    assert len(result.failed) == 2, "the search is closed once the test split was read"
    assert len(result.missing) == 3


def test_a_report_that_fails_midway_does_not_end_the_study(small):
    """Catches hours of runs given up for a picture."""
    asked = []

    def report(*values):
        asked.append(values)
        if len(asked) < 3:
            raise ZeroDivisionError
        return no_report(*values)

    with pytest.warns(UserWarning, match=r"the report could not be written yet \(ZeroDivisionError"):
        assert run.compare(small, run_cell=measured, report=report).done == 27
