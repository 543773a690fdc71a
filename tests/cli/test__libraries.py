"""What a verb says where a library of its extra is not installed."""

import importlib.util

import pytest
from helpers.command_line import mistake

from shadowpeft.cli._libraries import require
from shadowpeft.errors import UserError


def test_only_what_is_missing_is_named():
    require("a study", ["torch", "json"], extra="compare")
    wanted = r"^a study needs no_such, nor_this; pip install 'shadowpeft\[compare\]'$"
    with pytest.raises(UserError, match=wanted):
        require("a study", ["torch", "no_such", "nor_this"], extra="compare")


STUDY = ["--model", "m", "--tasks", "clinc150", "--output", "o", "--methods", "lora"]
VERBS = {
    "demo": (["demo"], "the demo needs peft", "demo"),
    "compare": (["compare", *STUDY], "a study needs peft", "compare"),
    "bench table": (["bench", "table", "--rows", "r"], "a measurement needs peft", "compare"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_name_the_extra_before_any_work(verb, monkeypatch, capsys):
    """Catches a trace of an import in place of what to install."""
    words, message, extra = VERBS[verb]
    find = importlib.util.find_spec
    without = lambda name, *rest: None if name == "peft" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    said = mistake(words, capsys)
    assert f"{message}; pip install 'shadowpeft[{extra}]'" in said
