"""What is timed: numbers that are finite, and no compiling."""

import pytest
from helpers.benches import command

from shadowpeft.bench import measure
from shadowpeft.bench.measurements import read
from shadowpeft.cli import main


def test_a_loss_that_is_no_number_is_not_timed(tmp_path, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    monkeypatch.setattr(measure, "LEARNING_RATE", float("inf"))
    assert main(command("train", "base,lora", rows, "--rounds", "1")) == 0
    found = {row["name"]: row for row in read(rows)}
    assert found["base"]["status"] == "ok"
    assert "not a finite number" in found["lora"]["status"]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "compiled"), [("train", "lora,shadow"), ("forward", "base,shadow")])
def test_compiled_methods_compile_once(part, compiled, tmp_path, monkeypatch):
    """Catches a method that is compiled anew in each round, so that its time is that of the compiler."""
    graphs = []

    def count(graph, examples):
        graphs.append(1)
        return graph.forward

    real, compiled_at = measure.train if part == "train" else measure.prefill, []

    def timed(*args, **options):
        result = real(*args, **options)
        compiled_at.append(len(graphs))
        return result

    monkeypatch.setattr(measure, "COMPILER", count)
    monkeypatch.setattr(measure, "train" if part == "train" else "prefill", timed)
    rows = tmp_path / "rows.jsonl"
    words = command(part, "base,peft-shadow", rows, "--rounds", "2", "--warmup", "0", "--compiled", compiled)
    assert main(words) == 0
    found = [row for row in read(rows) if row["compiled"]]
    assert [row["name"] for row in found] == [f"{name}+compiled" for name in compiled.split(",")]
    assert all(row["status"] == "ok" and row["compile_seconds"] > 0 for row in found), [
        row["status"] for row in found
    ]
    assert len(compiled_at) == 8
    assert compiled_at[3] == compiled_at[-1] == len(graphs) > 0
