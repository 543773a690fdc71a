"""The records of a study: reading them back, whole or damaged."""

import json
import os

import pytest
from helpers.noted_cells import (
    called,
    go,
    record_file,
    written,
)

from shadowpeft.errors import DataError


@pytest.mark.parametrize("lost", [10, "line"])
def test_a_last_cell_cut_short_is_run_again(small, lost):
    """Catches half a line that stops every later reading, and half a cell (attached without detached) that
    counts as whole."""
    go(small)
    calls = len(called(small))
    lines = record_file(small).read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    assert (last["method"], last["mode"], last["part"], last["parts"]) == ("shadow", "detached", 2, 2)
    cut = sum(map(len, lines)) - (lost if lost != "line" else len(lines[-1]))
    os.truncate(record_file(small), cut)
    with pytest.warns(UserWarning, match="the last cell was cut short"):
        assert go(small).done == 27
    assert called(small)[calls:] == [last["key"]]
    assert [row["mode"] for row in written(small)[-2:]] == ["attached", "detached"]


def test_a_damaged_line_is_named(small):
    go(small)
    lines = record_file(small).read_text(encoding="utf-8").splitlines()
    record_file(small).write_text("\n".join(["{", *lines[1:], ""]), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"compare-out\.jsonl:1: expected a record of a study, got a line that is damaged"
    ):
        go(small)
