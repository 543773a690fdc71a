"""The recipe that compares warm starts, run small."""

import json
import math

import pytest
import torch
from helpers.recipes import run
from helpers.runs import WORDS, save_base, write_rows
from helpers.tiny import qwen3_config
from transformers import AutoModelForCausalLM


def test_the_table_is_complete_and_true(tmp_path):
    """If the base's head can say all that the smaller one says, `pinv` and `weighted` are as good as it."""
    base = save_base(tmp_path / "base", tie_word_embeddings=False)
    small = save_base(
        tmp_path / "small", seed=1, hidden_size=16, intermediate_size=24, tie_word_embeddings=False
    )
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (base, small)]
    with torch.no_grad():
        models[1].lm_head.weight.copy_(
            models[0].lm_head.weight @ torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
        )
    models[1].save_pretrained(small)
    for name, step in (("data", 3), ("held-out", 7)):
        write_rows(
            tmp_path / f"{name}.jsonl",
            [{"text": " ".join(WORDS[(i * step + j) % 10] for j in range(30))} for i in range(20)],
        )
    paths = [
        "--model",
        base,
        "--shadow",
        small,
        "--data",
        tmp_path / "data.jsonl",
        "--held-out",
        tmp_path / "held-out.jsonl",
    ]
    sizes = [
        "--rows=8",
        "--held-out-rows=4",
        "--length=16",
        "--batch=3",
        "--device=cpu",
        "--evenly=0.5",
        "--output",
        tmp_path / "rows.jsonl",
    ]
    said = run("warm_starts/measure.py", *paths, *sizes)
    rows = {
        row["P"]: row
        for row in map(json.loads, (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    }
    assert list(rows) == [
        "the base, own head",
        "the smaller model, own head",
        "random",
        "pinv",
        "weighted",
        "ridge",
        "weighted, 0.5 evenly",
    ]
    assert all(math.isfinite(row["perplexity"]) for row in rows.values())
    for method in ("pinv", "weighted"):
        assert abs(rows[method]["perplexity"] / rows["the smaller model, own head"]["perplexity"] - 1) < 1e-3
        assert rows[method]["error of logits"] < 1e-3
    assert abs(rows["random"]["perplexity"] / rows["pinv"]["perplexity"] - 1) > 0.05, (
        "each method is measured with its own P"
    )
    assert rows["ridge"]["ridge strength"] is not None
    assert said.count("\n|") == 8


def test_models_of_one_width_are_one_sentence(tmp_path):
    base = save_base(tmp_path / "base")
    write_rows(tmp_path / "data.jsonl", [{"text": "what is two plus four " * 20}])
    words = [
        "--model",
        base,
        "--shadow",
        base,
        "--data",
        tmp_path / "data.jsonl",
        "--held-out",
        tmp_path / "data.jsonl",
        "--length=16",
    ]
    with pytest.raises(
        SystemExit, match=f"^[^\n]*both models have the width {qwen3_config().hidden_size}[^\n]*$"
    ):
        run("warm_starts/measure.py", *words, "--device=cpu")
