"""The Trainer of a run: what it logs, how it times, and the place in the text that it keeps."""

import math
import time

import pytest
import torch
from helpers.pretraining import copy_run, logged, pretrained

from shadowpeft import arch
from shadowpeft.cli import main
from shadowpeft.pretrain.trainer import PROGRESS, _Stopwatch, perplexity_metrics
from shadowpeft.storage import stock_models


def test_logged_parts_add_up_to_the_loss(straight):
    """Catches parts averaged over other steps than the loss, and weights that the loss does not have."""
    names = ("loss", "next_token", "distil", "match")
    for loss, next_token, distil, match in zip(*(logged(straight, name) for name in names), strict=True):
        assert loss == pytest.approx(0.5 * next_token + 0.5 * distil + 0.1 * match, rel=1e-5)


def test_the_plain_rate_is_of_all_weights_whatever_the_run_trains(
    base_folder, small_folder, text_file, tmp_path, monkeypatch
):
    """Catches a rate of passes that leave most gradients out, and parts that stay trained afterwards."""
    asked, plain = [], torch.autograd.grad

    def grad(loss, weights, *args, **kwargs):
        asked.append(weights)
        return plain(loss, weights, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    changes = {"start": str(small_folder), "max_steps": 1, "train_parts": "projection"}
    result = pretrained(base_folder, text_file, tmp_path / "run", **changes)
    backbone = arch.decoder_of(stock_models.load_model(str(small_folder), torch.float32))
    table = sum(weight.numel() for weight in backbone.get_submodule("embed_tokens").parameters())
    wanted = 16 * 32 + sum(weight.numel() for weight in backbone.parameters()) - table
    assert [sum(weight.numel() for weight in weights) for weights in asked].count(wanted) == 4, (
        "one to warm up, three timed"
    )
    assert result.parameters == 16 * 32


def test_damaged_place_is_refused(command, straight, tmp_path, capsys):
    """Catches a run that goes on from the beginning of the text when it does not know where it was."""
    checkpoint = copy_run(straight, tmp_path / "run") / "checkpoints" / "checkpoint-8"
    (checkpoint / PROGRESS).write_text("{", encoding="utf-8")
    assert main([*command, "--resume", str(checkpoint)]) == 2
    assert "progress.json is missing or damaged" in capsys.readouterr().err


def test_a_loss_too_large_for_a_float_has_an_infinite_perplexity():
    """Catches an overflow that ends a run whose loss has exploded."""
    assert perplexity_metrics("eval", 1e4) == {"eval_loss": 1e4, "eval_perplexity": math.inf}
    assert perplexity_metrics("eval", 2.0)["eval_perplexity"] == pytest.approx(math.exp(2.0))


def test_the_stopwatch_leaves_out_pauses_and_the_warm_up(monkeypatch):
    """Catches a speed that counts evaluations as training, or the first steps, which warm the device up."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stopwatch = _Stopwatch()
    now = 5.0
    stopwatch.start(1000)
    assert stopwatch.overall() is None
    now = 15.0
    assert stopwatch.rate(1100) == 10.0
    assert stopwatch.overall() == 10.0, "with one stretch there is nothing to leave out"
    with stopwatch.paused():
        now = 100.0
    now = 102.0
    assert stopwatch.rate(1200) == 50.0
    now = 104.0
    assert stopwatch.rate(1600) == 200.0
    assert stopwatch.overall() == 125.0
