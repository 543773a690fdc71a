"""The whole demo runs, small."""

import json

import pytest

from shadowpeft.cli import main
from shadowpeft.demo import screen
from shadowpeft.demo.settings import Settings


@pytest.mark.slow
def test_the_demo_runs_small(monkeypatch, tmp_path, capsys):
    """Catches a demo that only its author could run: through the command line, table, JSON and report."""
    small = Settings(epochs=0.002, batch=4, test_rows=12, timed_answers=2)
    monkeypatch.setattr(screen, "Settings", lambda seed: small)
    assert main(["demo", "--report", str(tmp_path / "report.html"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    shadows = [
        "shadow attached",
        "shadow detached",
        "pretrained shadow attached",
        "pretrained shadow detached",
    ]
    assert [method["name"] for method in result["methods"]] == ["base", "LoRA", *shadows]
    for attached, alone in ((2, 3), (4, 5)):
        assert result["methods"][attached]["trainable"] > result["methods"][alone]["trainable"] > 0
    assert result["methods"][2]["trainable"] != result["methods"][4]["trainable"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "12\nheld-out requests" in page
    assert "[REMOTE]" in page
