"""`shadowpeft pretrain`: which loss decides the exit code; `tests/pretrain` runs it for real."""

import dataclasses

import pytest

from shadowpeft.cli import pretrain as verb
from shadowpeft.pretrain.config import PretrainConfig
from shadowpeft.pretrain.result import PretrainResult

CONFIG = PretrainConfig(model="m", data="d", output="o", max_steps=1)
NOTHING = dict.fromkeys((entry.name for entry in dataclasses.fields(PretrainResult)), None)


@pytest.mark.parametrize(
    ("losses", "code"),
    [
        ({"eval_loss": 2.0}, 0),
        ({"eval_loss": None}, 0),
        ({"eval_loss": 2.0, "start_loss": float("nan")}, 0),
        ({"eval_loss": float("nan")}, 1),
    ],
    ids=str,
)
def test_the_last_held_out_loss_decides_the_exit_code(losses, code, monkeypatch, capsys):
    """Catches a shadow called useless for the loss that it began with."""
    result = PretrainResult(**{**NOTHING, "stopped": False, "steps": 1, **losses})
    monkeypatch.setattr(verb, "pretrain", lambda config, command: result)
    assert verb.run(CONFIG, json=True) == code
    assert bool(capsys.readouterr().err) == (code == 1)
