"""Command lines run in this process, and what they must print."""

import json
from typing import Any

import pytest

from shadowpeft.cli import main


def mistake(words: list[Any], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a command line that must fail with one sentence and no trace; return the sentence."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == code
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    return lines[0]


def result(words: list[Any], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Run a command line that must succeed with `--json`; return what it printed."""
    capsys.readouterr()
    assert main([str(word) for word in [*words, "--json"]]) == 0
    return json.loads(capsys.readouterr().out)
