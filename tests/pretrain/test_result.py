"""What a run reports of itself: its result, and the facts in the shadow's folder."""

import json

import pytest
import torch
from helpers.pretraining import facts_of, logged, pretrained

from shadowpeft import ShadowConfig, attach
from shadowpeft.cli import main
from shadowpeft.storage import stock_models


def test_the_folder_tells_of_the_run(straight):
    """Catches counts that are off, a loss left out, and a speed that is logged for some steps only."""
    told = facts_of(straight)
    assert told["steps"] == 10
    assert told["tokens"] == 10 * 4 * 16
    assert told["laps"] >= 1
    assert (told["empty rows"], told["undecodable rows"]) == (1, 1)
    assert told["losses"] == "next_token 0.5, distil 0.5, match 0.1"
    assert told["eval loss"] < told["start loss"]
    assert told["rows"] == "2 x 2 of 16 tokens a step"
    assert told["share of plain"] == pytest.approx(
        told["tokens per second"] / told["plain tokens per second"], abs=1e-4
    )
    assert not {"output", "shadow", "checkpoint", "stopped", "model loss"} & set(told), (
        "places of this machine, and what was not measured"
    )


def test_final_loss_is_that_of_the_detached_model(straight, base_folder, text_file):
    """Catches an evaluation of other than what is shipped, on other rows, or a wrong loss of the base."""
    told = facts_of(straight)
    base = stock_models.load_model(str(base_folder), torch.float32)
    small = attach(base, ShadowConfig(), straight / "shadow").detached()
    tokenizer = stock_models.load_tokenizer(str(base_folder))
    texts = [json.loads(line)["text"] for line in text_file.read_text(encoding="utf-8").splitlines()[:4]]
    ids = [
        token
        for text in texts
        for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ]
    rows = torch.tensor(ids[: len(ids) // 16 * 16]).view(-1, 16)
    with torch.no_grad():
        assert told["eval loss"] == pytest.approx(small(rows, labels=rows).loss.item(), rel=1e-4)
        assert told["base loss"] == pytest.approx(base(rows, labels=rows).loss.item(), rel=1e-4)


def test_json_is_the_result(command, capsys):
    """Catches words among the JSON on stdout."""
    assert main([*command, "--max-steps", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 1
    assert result["parameters"] > 0
    assert result["plain_tokens_per_second"] > 0
    assert result["base_loss"] > 0


def test_a_run_of_few_steps_is_evaluated_at_its_end(base_folder, text_file, tmp_path):
    """Catches the evaluation before the first step taken for the one after the last, in a very short run."""
    clock = {"max_steps": None, "max_seconds": 1e-3}
    result = pretrained(base_folder, text_file, tmp_path / "run", **clock)
    assert result.steps == 1
    assert len(logged(tmp_path / "run", "eval_loss")) == 2
