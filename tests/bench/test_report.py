"""The table of a run, and its ratios."""

import pytest
from helpers.benches import command

from shadowpeft.bench import report
from shadowpeft.cli import main


def row(name: str, ms: float | None, peak: float | None, **more) -> dict:
    facts = {
        "kind": "train",
        "shape": "8b",
        "batch": 4,
        "tokens": 1024,
        "dtype": "bfloat16",
        "adapter_dtype": "base",
        "inject_from": None,
    }
    made = {
        "run": "r",
        "device": "d",
        "commit": None,
        "versions": {"torch": "2"},
        "command": "c",
        "checkpointing": False,
    }
    value = {
        "ms": ms,
        "ms_spread": 2.0,
        "peak_gb": peak,
        "trainable": 1,
        "tokens_per_second": 5.0,
        "status": "ok",
    }
    return {
        "name": name,
        "method": name.partition("+")[0],
        "compiled": "+" in name,
        **facts,
        **made,
        **value,
        **more,
    }


def test_ratios_are_to_the_named_references():
    rows = [
        row("base-chunked", 350.0, 20.0),
        row("lora", 400.0, 30.0),
        row("lora+compiled", 320.0, 25.0),
        row("shadow", 368.0, 24.0),
    ]
    *_, ours = report.ratios(rows)
    assert ours["ms/lora"] == pytest.approx(0.92)
    assert ours["ms/lora+compiled"] == pytest.approx(1.15)
    assert ours["ms/base-chunked"] == pytest.approx(368 / 350)
    assert ours["peak_gb/lora"] == pytest.approx(0.8)
    assert ours["ms/peft-shadow"] is None
    table = report.markdown([*rows, row("dora", None, None, status="out of memory")])
    assert "| `shadow` | - | 368.0 ± 1.0 | 5 | 24.00 | 1 | 0.920 | 1.051 | 1.150 | 0.800 |" in table
    assert "- `dora`: out of memory" in table


def test_table_is_printed_again(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,lora", rows, "--rounds", "1")) == 0
    before = capsys.readouterr().out
    assert main(["bench", "table", "--rows", str(rows)]) == 0
    assert capsys.readouterr().out == before
    assert main(["bench", "table", "--rows", str(rows), "--run", "other"]) == 2
    assert "there is no run 'other' in the file" in capsys.readouterr().err
    assert main(["bench", "table", "--rows", str(tmp_path / "none.jsonl")]) == 2
    assert "there is no file of rows" in capsys.readouterr().err
