"""The file of measurements: what other runs wrote stays, what one run wrote is replaced or withdrawn."""

import math

import pytest

from shadowpeft.bench.measurements import MeasurementFile, last_run, read
from shadowpeft.errors import DataError


def test_a_run_replaces_and_withdraws_its_own_measurements_alone(tmp_path):
    """Catches a file that loses the measurements of a run that wrote to it meanwhile."""
    first, second = (MeasurementFile(tmp_path / "rows.jsonl") for _ in range(2))
    first.put("lora", {"method": "lora", "ms": 1.0})
    second.put("lora", {"method": "lora", "ms": math.nan})
    first.put("lora", {"method": "lora", "ms": 2.0})
    found = {entry["run"]: entry for entry in read(first.path)}
    assert found.keys() == {first.run, second.run}
    assert found[first.run]["ms"] == 2.0
    assert found[second.run]["ms"] is None
    first.withdraw()
    assert [entry["run"] for entry in read(first.path)] == [second.run]


def test_the_last_run_is_the_one_that_began_last():
    """Catches the measurements of an earlier run in the table of a later one."""
    entries = [{"run": run, "method": method} for run, method in (("a", "x"), ("b", "x"), ("b", "y"))]
    assert last_run(entries) == entries[1:]
    assert last_run(entries, "a") == entries[:1]
    with pytest.raises(DataError, match="there is no run 'c' in the file; there are: a, b"):
        last_run(entries, "c")
    with pytest.raises(DataError, match="there are: none"):
        last_run([])


@pytest.mark.parametrize("line", ["{", "3", '{"run": "a"}'])
def test_a_line_that_is_no_measurement_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"run": "a", "method": "lora"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:2: expected a measurement"):
        MeasurementFile(path)
    assert path.read_text(encoding="utf-8").endswith(f"{line}\n")
