"""`shadowpeft eval` on rows; `tests/evaluation/test_harness.py` has the standard tasks."""

import pytest
from helpers.command_line import mistake, result

from shadowpeft.cli import main


def test_eval(base_folder, adapter_folder, rows_file, capsys):
    """Catches `--base` or `--detached` that measures the attached model, and a result that is not JSON."""
    words = ["eval", "--model", base_folder, "--adapter", adapter_folder, "--data", rows_file]
    attached, alone, bare = (result([*words, *more], capsys) for more in ([], ["--detached"], ["--base"]))
    assert {"rows", "loss", "perplexity", "shadow_loss", "exact_match", "answered_rows", "tokens"} == set(
        attached
    )
    assert attached["shadow_loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert alone["shadow_loss"] is bare["shadow_loss"] is None
    assert len({round(each["loss"], 4) for each in (attached, alone, bare)}) == 3
    assert bare == result(["eval", "--model", base_folder, "--data", rows_file], capsys)
    assert "exclude each other" in mistake([*words, "--detached", "--base"], capsys)
    assert main([str(word) for word in words]) == 0
    assert "exact match" in capsys.readouterr().out
