"""`shadowpeft train`: the run's command, and which process speaks; `tests/train` runs it for real."""

import dataclasses

import pytest

from shadowpeft.cli import train as verb
from shadowpeft.train.config import TrainConfig
from shadowpeft.train.result import TrainResult

CONFIG = TrainConfig(model="m", data="d", output="o")
RESULT = TrainResult(
    output="o",
    adapter="o/adapter",
    checkpoint=None,
    stopped=False,
    steps=1,
    epochs=1.0,
    train_loss=1.0,
    shadow_loss=None,
    eval_loss=None,
    eval_shadow_loss=None,
    seconds=1.0,
)


@pytest.mark.parametrize(("stopped", "code"), [(False, 0), (True, 130)])
def test_of_several_processes_the_first_one_speaks(stopped, code, monkeypatch, capsys):
    """Catches a result printed once a process, which is no JSON any more."""
    result = dataclasses.replace(RESULT, stopped=stopped)
    monkeypatch.setattr(verb, "train", lambda config, command: result)
    monkeypatch.setenv("RANK", "1")
    assert verb.run(CONFIG, json=True) == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert verb.run(CONFIG, json=True) == code
    assert capsys.readouterr().out


def test_the_command_is_noted_as_it_was_typed(monkeypatch, capsys):
    """Catches a model card whose command cannot be repeated."""
    commands = []
    monkeypatch.setattr("sys.argv", ["/usr/bin/shadowpeft", "train", "--data", "my rows.jsonl"])
    monkeypatch.setattr(verb, "train", lambda config, command: commands.append(command) or RESULT)
    assert verb.run(CONFIG) == 0
    assert commands == ["shadowpeft train --data 'my rows.jsonl'"]
    assert "train loss" in capsys.readouterr().out
