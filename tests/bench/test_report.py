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
    assert (
        "| `shadow` | bfloat16 | - | 368.0 ± 1.0 | 5 | 24.00 | 1 | 0.920 | 1.051 | 1.150 | 0.800 |" in table
    )
    assert "- `dora` (bfloat16): out of memory" in table


def test_only_equal_types_are_compared():
    """Catches our bfloat16 beside LoRA's float32, and a row or a ratio that does not say its type."""
    kinds = (("float32", "float32"), ("base", "bfloat16"), ("autocast", "float32"))
    rows = [row("base-chunked", 300.0, 20.0, adapter_dtype=None, trained_dtype=None)]
    for number, (asked, own) in enumerate(kinds, start=1):
        typed = {"adapter_dtype": asked, "trained_dtype": own}
        rows += [row("lora", 400.0 * number, 30.0, **typed), row("shadow", 300.0 * number, 15.0, **typed)]
    rows.append(row("dora", None, None, adapter_dtype="base", trained_dtype=None, status="out of memory"))
    floor, *others, _ = report.ratios(rows)
    assert floor["ms/lora"] is None
    assert [entry["ms/lora"] for entry in others] == [1.0, 0.75] * 3
    assert [entry["ms/base-chunked"] for entry in others[:2]] == pytest.approx([4 / 3, 1.0])
    assert [entry["adapter_dtype"] for entry in others[::2]] == ["float32", "base", "autocast"]
    table = report.markdown(rows)
    for kind in ("float32", "bfloat16", "float32, autocast"):
        assert f"| `shadow` | {kind} | - |" in table
    assert "| `base-chunked` | - | - |" in table
    assert "- `dora` (base): out of memory" in table


@pytest.mark.parametrize(
    ("asked", "kind"), [("base", "bfloat16"), ("float32", "float32, autocast"), ("own", "own")]
)
def test_former_rows_say_their_types(asked, kind):
    """Catches a type of today's meaning beside rows that were measured under another."""
    assert f"| `lora` | {kind} |" in report.markdown([row("lora", 400.0, 30.0, adapter_dtype=asked)])


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
