"""How a run ends on the command line: its exit code, and what is said of it."""

import dataclasses
import json

import pytest

from shadowpeft.cli import _runs
from shadowpeft.train import TrainResult

DONE = TrainResult(
    output="a folder/run",
    adapter="a folder/run/adapter",
    checkpoint=None,
    stopped=False,
    steps=3,
    epochs=1.0,
    train_loss=2.0,
    shadow_loss=None,
    eval_loss=None,
    eval_shadow_loss=None,
    seconds=0.5,
)


def test_a_run_that_is_over(capsys):
    """Catches a loss that was not measured taken for one that is not finite."""
    assert _runs.finish("train", DONE, [DONE.train_loss, DONE.eval_loss], as_json=True) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == dataclasses.asdict(DONE)
    assert said.err == ""


@pytest.mark.parametrize("verb", ["train", "pretrain"])
def test_a_run_that_was_stopped_says_how_to_continue(verb, capsys):
    """Catches a command that cannot be typed again: the folder's name holds a space."""
    stopped = dataclasses.replace(DONE, stopped=True)
    assert _runs.finish(verb, stopped, [], as_json=False) == 130
    again = f"shadowpeft {verb} --config 'a folder/run/run.yaml' --resume"
    assert capsys.readouterr().err == (
        f"shadowpeft {verb}: stopped after step 3 and saved; continue with: {again}\n"
    )


@pytest.mark.parametrize(("verb", "made"), [("train", "adapter"), ("pretrain", "shadow")])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_failure(verb, made, loss, capsys):
    assert _runs.finish(verb, DONE, [1.0, loss], as_json=True) == 1
    assert f"so the {made} is of no use; try a lower learning rate" in capsys.readouterr().err
