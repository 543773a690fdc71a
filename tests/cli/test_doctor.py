"""`shadowpeft doctor`."""

import torch
from helpers.command_line import result

from shadowpeft.cli import main


def test_doctor(capsys):
    facts = result(["doctor"], capsys)
    assert facts["versions"]["torch"] == torch.__version__
    assert "Qwen3" in facts["families"]
    assert facts["devices"][0]["device"] == "cpu"
    assert main(["doctor"]) == 0
    assert "transformers" in capsys.readouterr().out
