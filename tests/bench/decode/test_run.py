"""A bench of decoding from its command to its table."""

import json
import runpy
import sys

import pytest
import torch
from helpers.recipes import ROOT, write_rows

from shadowpeft import ShadowConfig, attach
from shadowpeft.bench import shapes
from shadowpeft.bench.decode import check, run, turns
from shadowpeft.bench.measurements import read
from shadowpeft.cli import main
from shadowpeft.embedded import MODEL
from shadowpeft.storage import stock_models

FIELDS = (
    "shape model batch context method impl way draft_tokens ms_per_token ms_spread tokens_per_second "
    "tokens_per_round acceptance first_token_ms compile_seconds device run versions commit command status"
)
SMALL = ["--device", "cpu", "--new-tokens", "24", "--rounds", "1"]


def command(rows, *more: str) -> list[str]:
    return ["bench", "decode", *SMALL, "--shape", "tiny", "--context", "8", "--output", str(rows), *more]


def test_from_the_command_to_the_table(tmp_path, capsys):
    """Catches a row without its facts, a way or batch that is lost, and `bench table` on other rows."""
    rows = tmp_path / "rows.jsonl"
    methods = ["--methods", "base,shadow:reference,draft", "--draft-tokens", "2"]
    assert main(command(rows, *methods, "--batch", "1,2", "--json")) == 0
    said = capsys.readouterr()
    found = list(map(json.loads, rows.read_text(encoding="utf-8").splitlines()))
    assert all(set(FIELDS.split()) <= row.keys() for row in found)
    ways = [(row["batch"], row["way"], row["name"]) for row in found if row["ms_per_token"]]
    names = ["base", "shadow:reference", "draft 2"]
    assert ways == [(batch, "generate", name) for batch in (1, 2) for name in names][:5]
    status = {(row["batch"], row["way"], row["name"]): row["status"] for row in found}
    assert status[2, "generate", "draft 2"].startswith('failed: draft="shadow" decodes one row')
    assert status[1, "graph", "base"] == "missing: the way graph needs an NVIDIA GPU"
    assert (1, "graph", "draft 2") not in status
    draft = next(row for row in found if row["name"] == "draft 2" and row["ms_per_token"])
    assert draft["tokens_per_round"] >= 1
    assert len(draft["acceptance"]) == 1
    shown = json.loads(said.out)
    assert shown["rows"] == found
    assert {"ms/base", "ms/shadow"} <= shown["ratios"][0].keys()
    assert main(["bench", "table", "--rows", str(rows)]) == 0
    assert "## tiny: 2 x 8 tokens and 24 new ones, float32" in capsys.readouterr().out
    assert "`shadow:reference`" in rows.with_suffix(".md").read_text(encoding="utf-8")


def test_resuming_measures_what_is_left_and_the_base(tmp_path, capsys):
    """Catches a run that begins anew, and a ratio to a base of another process."""
    rows = tmp_path / "rows.jsonl"
    assert main(command(rows, "--ways", "generate", "--methods", "base,detached")) == 0
    again = command(rows, "--ways", "generate", "--methods", "base,detached,lora", "--resume")
    assert main(again) == 0
    found = read(rows)
    assert [row["name"] for row in found] == ["base", "detached", "base", "lora"]
    assert [row["run"] == found[0]["run"] for row in found] == [True, True, False, False]
    assert main([*again, "--json"]) == 0
    assert read(rows) == found
    said = capsys.readouterr().out
    shown = json.loads(said[said.index('{\n  "rows"') :])
    assert [(row["name"], row["run"]) for row in shown["rows"]] == [
        (row["name"], row["run"]) for row in (found[0], found[2], found[1], found[3])
    ]
    assert all(entry["ms/base"] for entry in shown["ratios"])


def test_real_texts_of_a_pair(tmp_path, capsys):
    """Catches texts that are not the file's, and an adapter that is not the folder's."""
    base = stock_models.load_model(str(MODEL), torch.float32)
    attach(base, ShadowConfig()).save_pretrained(tmp_path / "adapter")
    write_rows(tmp_path / "rows.jsonl.gz", [{"text": "In 1891 the company"}, {"text": "He was"}])
    output = tmp_path / "found.jsonl"
    words = [
        "bench", "decode", *SMALL, "--model", str(MODEL), "--adapter", str(tmp_path / "adapter"), "--data",
        str(tmp_path / "rows.jsonl.gz"), "--texts", "1", "--methods", "shadow", "--ways", "generate",
        "--output", str(output),
    ]  # fmt: skip
    assert main(words) == 0
    (row,) = read(output)
    assert (row["texts"], row["new_tokens"], row["shape"], row["model"]) == (1, 24, None, str(MODEL))
    assert row["context"] == len(stock_models.load_tokenizer(str(MODEL))("In 1891 the company").input_ids)
    assert f"{MODEL}, adapter {tmp_path}/adapter: 1 texts of" in capsys.readouterr().out


def test_what_is_red_is_not_reported(tmp_path, capsys, monkeypatch):
    """Catches rows of a run whose numerical test has failed."""
    rows = tmp_path / "rows.jsonl"

    def red(*_):
        raise check.NumericalTestFailed("red")

    def late(*arguments):
        monkeypatch.setattr(check.Reference, "require_same_text", red)
        return real(*arguments)

    real = turns.reference
    monkeypatch.setattr(turns, "reference", late)
    assert main(command(rows, "--ways", "generate", "--methods", "base,shadow:reference")) == 2
    assert capsys.readouterr().err.endswith("red\n")
    assert read(rows) == []


def test_a_base_that_does_not_fit_is_one_sentence(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(shapes, "build", full)
    assert main(command(tmp_path / "rows.jsonl", "--methods", "base")) == 2
    assert "tiny and its numerical test do not fit into the memory of cpu" in capsys.readouterr().err


def test_no_base_is_built_after_the_limit(tmp_path, capsys, monkeypatch):
    clock = iter([0.0, 100.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(shapes, "build", lambda *_: pytest.fail("a base was built"))
    assert main(command(tmp_path / "rows.jsonl", "--methods", "base", "--limit-seconds", "50")) == 1
    assert "tiny: not begun, limit_seconds are over" in capsys.readouterr().err


def test_the_recipe_measures_the_same(tmp_path, capsys, monkeypatch):
    """Catches a recipe that needs the command line's library, or lacks one of its flags."""
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    rows = tmp_path / "rows.jsonl"
    words = [
        "--shape",
        "tiny",
        "--context",
        "8",
        "--methods",
        "base",
        "--ways",
        "generate",
        "--seconds",
        "500",
    ]
    monkeypatch.setattr(sys, "argv", ["decode.py", *SMALL, *words, "--output", str(rows)])
    runpy.run_path(str(ROOT / "recipes" / "bench" / "decode.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("tiny 1 x 8 generate base: ")
    assert "| `base` | generate |" in said
    (row,) = read(rows)
    assert row["command"].startswith("python recipes/bench/decode.py --device cpu")
    assert row["rounds"] == 1


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, capsys):
    """Catches a way that is red, or is not compiled or captured, where it is meant to run."""
    rows = tmp_path / "rows.jsonl"
    words = ["bench", "decode", "--shape", "tiny", "--rounds", "2", "--output", str(rows)]
    assert main([*words, "--methods", "base,lora,shadow,shadow:reference,draft"]) == 0, (
        capsys.readouterr().err
    )
    found = {(row["way"], row["name"]): row for row in read(rows)}
    for name in ("base", "lora", "shadow", "shadow:reference"):
        for way in ("generate", "graph", "compiled"):
            assert found[way, name]["status"] == "ok"
    assert found["compiled", "base"]["compile_seconds"] > 0
