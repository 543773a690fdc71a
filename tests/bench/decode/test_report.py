"""The table of decoding, and its ratios."""

import pytest

from shadowpeft.bench.decode import report


def row(name: str, ms: float | None, way: str = "generate", **more) -> dict:
    facts = {"shape": "8b", "model": None, "adapter": None, "shadow": None, "data": None, "texts": 1}
    sizes = {"batch": 1, "context": 2048, "new_tokens": 64, "dtype": "bfloat16"}
    made = {"run": "r", "device": "d", "commit": None, "versions": {"torch": "2"}, "command": "c"}
    value = {
        "ms_per_token": ms, "ms_spread": 0.2, "tokens_per_second": ms and 1000 / ms, "first_token_ms": 20.0,
        "compile_seconds": None, "tokens_per_round": None, "acceptance": None, "status": "ok",
    }  # fmt: skip
    return {"name": name, "way": way, **facts, **sizes, **made, **value, **more}


ROWS = [
    row("base", 4.0),
    row("lora-merged", 4.4),
    row("shadow", 5.0),
    row("draft 4", 2.5, tokens_per_round=3.0, acceptance=[0.9, 0.8, 0.5]),
    row("base", 2.0, way="compiled", compile_seconds=101.0),
    row("peft-shadow", None, way="compiled", status="failed: no static cache"),
    row("shadow-peft", None, way="compiled", status="failed: no static cache"),
]


def test_ratios_are_to_the_same_way_of_the_same_run():
    """Catches a draft that is compared with a compiled base, or with one of another day."""
    found = report.ratios([*ROWS, row("base", 1.0, run="s"), row("shadow", 3.0, batch=8)])
    assert [entry["ms/base"] for entry in found] == [1.0, 1.1, 1.25, 0.625, 1.0, None, None, 1.0, None]
    assert found[3]["ms/shadow"] == 0.5
    assert found[3]["ms/lora-merged"] == pytest.approx(2.5 / 4.4)
    assert found[4]["ms/lora-merged"] is None


def test_the_table():
    text = report.markdown(ROWS)
    assert "## 8b: 1 x 2,048 tokens and 64 new ones, bfloat16" in text
    head = next(line for line in text.splitlines() if line.startswith("| method"))
    assert head == (
        "| method | way | ms a token | tokens/s | / base | / merged LoRA | / attached | first token, ms "
        "| to compile, s | tokens a round | acceptance |"
    )
    assert (
        "| `draft 4` | generate | 2.500 ± 0.100 | 400.0 | 0.625 | 0.568 | 0.500 | 20.0 | - | 3.00 "
        "| 0.90 0.80 0.50 |" in text
    )
    assert "| `base` | compiled | 2.000 ± 0.100 | 500.0 | 1.000 | - | - | 20.0 | 101 | - | - |" in text
    assert "- `peft-shadow`, `shadow-peft`, compiled: failed: no static cache" in text
    assert "Run r on d; commit unknown; torch 2." in text
    assert report.markdown([]) == "Nothing was measured."


def test_a_table_for_each_base_size_and_run():
    pair = {"shape": None, "model": "m", "adapter": "a", "data": "gsm8k", "texts": 8}
    text = report.markdown(
        [ROWS[0], row("base", 1.0, batch=8), row("base", 1.0, run="s"), row("base", 1.0, **pair)]
    )
    assert text.count("| method") == 4
    assert "## m, adapter a: 8 texts of gsm8k, on average 2,048 tokens and 64 new ones, bfloat16" in text
    assert "tokens a round" not in text
    assert text.count("Run ") == 2
