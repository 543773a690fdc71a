"""What a run leaves behind: its folder, its losses and the facts on its card."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.runs import adapter_of, logged
from transformers import TrainingArguments

from shadowpeft import ShadowConfig, ShadowedModel
from shadowpeft.cli import main
from shadowpeft.storage import stock_models
from shadowpeft.train.config import TrainConfig
from shadowpeft.train.examples import Examples
from shadowpeft.train.result import TrainResult, facts

# What a run measured, but for its folders.
MEASURED = {
    "steps": 3,
    "epochs": 1.0,
    "train_loss": 1.5,
    "shadow_loss": None,
    "eval_loss": None,
    "eval_shadow_loss": None,
    "seconds": 0.5,
}


def test_run_leaves_what_it_promises(straight, base_folder):
    """Catches a missing file, a card without the run's facts, and an adapter that did not learn or load."""
    found = sorted(path.name for path in straight.iterdir())
    assert found == ["adapter", "checkpoints", "metrics.jsonl", "run.yaml"]
    assert {path.name for path in straight.glob("checkpoints/*")} == {"checkpoint-10", "checkpoint-8"}
    assert not list(straight.rglob("model.safetensors")), "a checkpoint holds the adapter only"
    card = (straight / "adapter" / "README.md").read_text(encoding="utf-8")
    for fact in (
        "rows.jsonl",
        "| rows | 20 |",
        "| eval rows | 4 |",
        "| steps | 10 |",
        "| epochs | 2.0 |",
        "eval loss",
        "device | cpu",
    ):
        assert fact in card, fact
    losses = logged(straight)
    assert len(losses) == len(logged(straight, "shadow_loss")) == 10
    assert sum(losses[-4:]) < sum(losses[:4]), (
        "one step's loss depends more on its rows than on what was learned"
    )
    assert len(logged(straight, "eval_loss")) == 3, "steps 4, 8 and 10"
    ShadowedModel.from_pretrained(stock_models.load_model(str(base_folder)), straight / "adapter")


def test_short_run_shows_its_losses(command, tmp_path, capsys):
    """Catches a run shorter than logging_steps that tells nothing, and a card without the run's settings."""
    assert main([*command, "--max-steps", "2", "--logging-steps", "50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train_loss"] == pytest.approx(logged(tmp_path / "run")[-1])
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    for fact in (
        "learning rate | 0.01",
        "accumulation | 2 x 2",
        "max steps | 2",
        "seed | 0",
        "scheduler | cosine",
        "bf16 | False",
    ):
        assert fact in card, fact
    for fact in ("| r | 16 |", "| update_width | 10 |", "| inject_from | 1 |"):
        assert fact in card, fact
    assert "base_model:" not in card, "a path says nothing on the hub"


def test_loss_that_is_not_a_number(command, tmp_path, capsys):
    """Catches JSON that no reader takes, and a useless adapter that looks like a success."""
    steep = "--max-steps 3 --learning-rate 1e30 --max-grad-norm 0 --json"
    assert main([*command, *steep.split()]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1].startswith("shadowpeft train: the loss is not a finite number")
    assert json.loads(said.out, parse_constant=pytest.fail)["train_loss"] is None
    for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert adapter_of(tmp_path / "run")


def test_facts_that_do_not_apply_are_left_out(tmp_path):
    """Catches an empty line on a card, a fact of the value False left out, and another order."""
    rows = Examples(None, [{}] * 3, [], [])
    base = {"model": "m", "data": "d", "output": "o"}
    result = TrainResult("o", "o/adapter", None, stopped=False, **MEASURED)
    plain = facts(TrainConfig(**base), result, rows, start=None, args=TrainingArguments(tmp_path))
    assert list(plain)[:6] == ["data", "rows", "eval rows", "steps", "epochs", "batch size x accumulation"]
    assert (plain["bf16"], plain["eval rows"], plain["train loss"]) == (False, 0, "1.5")
    absent = {"eval loss", "packed to", "max steps", "processes", "base", "resumed from"}
    assert not absent & plain.keys()
    every = TrainConfig(
        **base,
        packing=True,
        max_length=64,
        max_steps=4,
        backbone_learning_rate=1e-4,
        load_in_4bit=True,
        shadow=ShadowConfig(shadow_distil=0.5),
    )
    start = tmp_path / "checkpoint-2"
    args = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    found = facts(every, result, rows, start=start, args=args)
    added = {name: value for name, value in found.items() if name not in plain}
    assert added == {
        "packed to": "64 tokens a row",
        "max steps": 4,
        "processes": 2,
        "backbone learning rate": "0.0001",
        "of it learnt from the attached answer": 0.5,
        "base": "in 4 bits (NF4)",
        "resumed from": "checkpoint-2",
    }
