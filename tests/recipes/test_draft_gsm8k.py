"""The recipe that measures drafts on GSM8K: how it counts rounds, and a small run."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.drafts import drafted
from helpers.families import attached, tiny_config, tiny_model, token_ids
from helpers.recipes import run

from shadowpeft import ShadowConfig
from shadowpeft.model.draft_loss import next_tokens

SCRIPT = Path(__file__).parents[2] / "recipes" / "draft_gsm8k" / "measure.py"


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_rounds_are_counted_as_they_are_drafted(most: int) -> None:
    """Catches acceptance by another position, a round that goes on behind a wrong draft, and another end."""
    rounds: Any = runpy.run_path(str(SCRIPT))["rounds"]
    config = tiny_config("llama", eos_token_id=7)
    model = attached(tiny_model("llama", config=config), ShadowConfig(), tiny_model("llama", config=config))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        gains = torch.randn(32, generator=generator).mul(0.25).exp()
        model.adapter.shadow.backbone.norm.weight.mul_(gains)
    taken = put = 0
    for seed in range(6):
        ids = token_ids(1, 9, seed=seed)
        out = drafted(model, ids, most, eos_token_id=7)
        text = out.sequences
        answer = text[0, 9:].tolist()
        _, drafts_BT = next_tokens(model, {"input_ids": text, "attention_mask": torch.ones_like(text)})
        drafts = drafts_BT[0, 9:-1].tolist()
        matches = [draft == after for draft, after in zip(drafts, answer[1:], strict=True)]
        found, real = rounds(matches, most, 19), out.draft_report
        assert (found.rounds, found.tokens) == (real.rounds, real.tokens)
        assert (found.drafted, found.accepted) == (real.drafted, real.accepted)
        taken, put = taken + sum(found.accepted), put + sum(found.drafted)
    assert 10 < taken < put or most == 1


@pytest.mark.slow
def test_the_recipe_measures(tmp_path: Path) -> None:
    """Catches a recipe that no longer runs, an arm that is another one, and drafts that change an answer."""
    rows = [
        {"question": f"What is {i} plus {i}?", "answer": f"It is <<{i}+{i}>>{2 * i}.\n#### {2 * i}"}
        for i in range(40)
    ]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    few = "--steps 2 --batch-size 2 --dev-rows 4 --max-new-tokens 8 --prompts 6 --draft-steps 2 --check 1"
    words = ("--data", tmp_path / "gsm8k.jsonl", "--output", tmp_path / "out", *few.split())
    arms = ["explicit", "random", "explicit-lk"]
    found = [json.loads(line) for line in run("draft_gsm8k/measure.py", *words, "--arms", *arms).splitlines()]
    assert [(row["arm"], row["drafts"]) for row in found] == [
        (arm, drafts) for arm in arms for drafts in ("s0", "head")
    ]
    for row in found:
        assert row["checked"]["real"] == row["checked"]["counted"]
        assert row["checked"]["same_text"] == "1 of 1"
        assert row["drafts"] == "s0" or row["attached_bits_equal"]
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == found
    assert (tmp_path / "out" / "explicit-lk-head" / "shadow.safetensors").is_file()
