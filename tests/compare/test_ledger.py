"""The ledger of a study: one process at a time, and failures that are forgotten."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from helpers.noted_cells import (
    go,
    interrupted,
    ok,
    record_file,
)

from shadowpeft.compare import ledger, records, schedule
from shadowpeft.errors import ConfigError, UserError


def test_failed_trials_may_run_again_before_the_test_is_read(small):
    with pytest.raises(KeyboardInterrupt):
        go(small, interrupted)
    with ledger.Ledger(small) as kept:
        cell = schedule.ready(small, kept.records)[0]
        kept.write(cell, records.failed(cell, "crashed", "x"), "cpu")
        assert cell not in schedule.ready(small, kept.records)
        kept.forget_failures()
        assert cell in schedule.ready(small, kept.records)
        kept.write(cell, [ok(cell, 1.0)], "cpu")
    found = records.read(record_file(small))
    assert [record["status"] for record in found if record["key"] == cell.key] == ["ok"]


def test_a_second_process_leaves_the_study_file_of_the_first(small):
    """Catches settings overwritten while their study runs its first cell, so that it cannot be continued."""
    with ledger.Ledger(small):
        with pytest.raises(ConfigError, match="another process is running the study"):
            go(replace(small, seeds=5))
        assert yaml.safe_load((Path(small.output) / "study.yaml").read_text(encoding="utf-8"))["seeds"] == 2


def test_two_processes_cannot_share_a_study(small):
    with ledger.Ledger(small), pytest.raises(ConfigError, match="another process is running the study"):
        go(small)


def test_a_folder_that_cannot_be_made(small, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(
        UserError,
        match=(
            r"^the study's folder \S+file/out cannot be written \(Not a directory\); choose another output$"
        ),
    ):
        go(replace(small, output=str(tmp_path / "file" / "out")))
