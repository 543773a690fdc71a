"""A bench from its command to its table: one method that fails does not cost the others."""

import json
import sys

import pytest
import torch
from helpers.benches import command

from shadowpeft.bench import measure, methods, shapes
from shadowpeft.bench.measurements import read
from shadowpeft.bench.specs import DEFAULTS
from shadowpeft.cli import main
from shadowpeft.ops import choice

FIELDS = "shape batch tokens method impl inject_from ms ms_spread peak_gb trainable device run"


@pytest.mark.parametrize("part", ["train", "forward"])
def test_measures_side_by_side(part, tmp_path, capsys):
    """Catches a row without its facts, a table or picture that is not made, and a run that loses the rows of
    earlier ones."""
    rows = tmp_path / "rows.jsonl"
    names = ["base", "lora", "peft-shadow", "shadow:reference", "shadow@1/2", "lora@1/2"]
    assert main(command(part, "base", rows, "--rounds", "1")) == 0
    assert main(command(part, ",".join(names), rows, "--rounds", "2", "--json")) == 0
    said = capsys.readouterr()
    first, *found = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    assert [row["name"] for row in found] == names
    assert len({row["run"] for row in found} | {first["run"]}) == 2
    for row in found:
        assert {*FIELDS.split(), "tokens_per_second", "dtype", "versions", "commit"} <= row.keys()
        assert [len(turn) for turn in row["samples"]] == [2, 2]
        assert row["ms"] > 0
        assert row["tokens_per_second"] == pytest.approx(8000 / row["ms"])
        assert row["peak_gb"] is None
    assert [row["inject_from"] for row in found] == [None, None, 0, 1, 2, 2]
    assert [bool(row["trainable"]) for row in found] == [False] + [True] * 5
    turns = [line.split(":")[0].split()[1] for line in said.err.splitlines() if line.startswith("tiny ")]
    assert [name.partition("@")[0] for name in turns[1:]] == [
        name.partition(":")[0].partition("@")[0] for name in names
    ] * 2  # A B C A B C
    assert (tmp_path / "rows.png").stat().st_size > 10_000
    assert "| `shadow@1/2` | float32 | 2 |" in (tmp_path / "rows.md").read_text(encoding="utf-8")
    shown = json.loads(said.out[said.out.index('{\n  "rows"') :])
    assert shown["rows"] == found
    assert shown["ratios"][1]["ms/lora"] == 1.0


def test_a_method_that_fails_does_not_cost_the_others(tmp_path, capsys, monkeypatch):
    """Catches a run that ends with the first missing library or full memory, and one that tries it again in
    every round."""
    monkeypatch.setitem(sys.modules, "shadow_peft", None)
    tries = []

    def full(*_, **options):
        tries.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")

    monkeypatch.setitem(methods._METHODS, "dora", full)
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,dora,shadow-peft,lora", rows, "--rounds", "2")) == 0
    found = {row["name"]: row for row in read(rows)}
    assert found["dora"]["status"] == "out of memory"
    assert found["dora"]["ms"] is None
    assert found["shadow-peft"]["status"] == "missing: shadow_peft is not installed"
    assert len(found["lora"]["samples"]) == 2
    assert len(tries) == 1
    said = capsys.readouterr().out
    assert "- `dora` (float32): out of memory" in said
    assert "- `shadow-peft` (float32): missing: shadow_peft is not installed" in said
    assert main(command("train", "dora", rows, "--rounds", "1")) == 1


def test_a_base_that_does_not_fit_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(shapes, "build", full)
    assert main(command("train", "base", tmp_path / "rows.jsonl")) == 2
    assert (
        "the shape tiny and its numerical test do not fit into the memory of cpu" in capsys.readouterr().err
    )


def test_what_was_measured_outlives_an_interruption(tmp_path, capsys, monkeypatch):
    """Catches rows that are only written at the end."""
    real, calls = measure.train, []

    def train(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(measure, "train", train)
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,lora", rows, "--rounds", "3")) == 130
    assert {row["name"]: len(row["samples"]) for row in read(rows)} == {"base": 2, "lora": 1}


def test_no_turn_begins_after_the_limit(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    assert main(command("train", "base,lora", rows, "--rounds", "100", "--limit-seconds", "0.01")) == 1
    assert read(rows) == []
    assert "limit_seconds are over" in capsys.readouterr().err


def test_defaults_that_cannot_run_are_named(tmp_path, capsys, monkeypatch):
    """Catches a default that refuses to run at all where there is no GPU, and one that is left out in
    silence."""
    monkeypatch.setattr(choice, "no_triton", lambda: "needs a GPU")
    monkeypatch.setitem(DEFAULTS, "train", "base,shadow,shadow:triton")
    words = command("train", "shadow:triton", tmp_path / "rows.jsonl", "--rounds", "1")
    assert main(words) == 2
    assert "impl='triton' needs a GPU" in capsys.readouterr().err
    words[words.index("--methods") : words.index("--methods") + 2] = []
    assert main(words) == 0
    assert {row["name"]: row["status"][:7] for row in read(tmp_path / "rows.jsonl")} == {
        "base": "ok",
        "shadow": "ok",
        "shadow:triton": "missing",
    }
    assert "- `shadow:triton` (float32): missing: impl='triton' needs a GPU" in capsys.readouterr().out


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, capsys):
    """Catches a peak that is not the step's own, and an implementation that is red where it is meant to
    run."""
    methods = (
        "base,base-chunked,lora,peft-shadow,shadow-peft,shadow,shadow:reference,shadow:compile,"
        "shadow:triton,shadow@1/2"
    )
    for part, left_out in (("train", ""), ("forward", "base-chunked,")):
        rows = tmp_path / f"{part}.jsonl"
        words = [
            "bench",
            part,
            "--shape",
            "tiny",
            "--tokens",
            "128",
            "--rounds",
            "2",
            "--methods",
            methods.replace(left_out, ""),
        ]
        assert main([*words, "--compiled", "lora,shadow", "--output", str(rows)]) == 0, (
            capsys.readouterr().err
        )
        found = read(rows)
        assert [row["status"] for row in found] == ["ok"] * len(found)
        assert all(0 < row["peak_gb"] < 1 and row["dtype"] == "bfloat16" for row in found)
        assert not found[0]["device"].startswith("cpu")
