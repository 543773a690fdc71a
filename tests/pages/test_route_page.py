"""The page on routing: its commands, its table of scores, its numbers and its Python."""

import json
import re
import shlex

import pytest
from helpers.answered import REMOTE, made_up
from helpers.recipes import ROOT
from matplotlib import pyplot as plt

from shadowpeft.cli import _calibration, main
from shadowpeft.evaluation.roles import Answerer, LocalRole
from shadowpeft.route import plots
from shadowpeft.route.intervals import kept_needed
from shadowpeft.route.policy import Policy
from shadowpeft.route.scores import NAMES

PAGE = ROOT / "docs" / "guides" / "route.md"
TEXT = PAGE.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_the_commands_and_the_python_of_the_page_run(tmp_path, monkeypatch, capsys):
    """Catches a flag that does not exist, and a step that needs another file. Who answers is made up."""
    monkeypatch.chdir(tmp_path)
    for name, seed in (("dev", 0), ("test", 1)):
        rows = [{"prompt": str(at), "completion": "x", "of": seed} for at in range(400)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.setattr(_calibration, "_roles", lambda flags: (LocalRole(None, None, 1), None))
    monkeypatch.setattr(_calibration, "identity_of", lambda *given: Answerer("tiny"))
    monkeypatch.setattr(
        _calibration,
        "answered_rows",
        lambda rows, *_: made_up(len(rows), rows[0].fields["of"], shift=5.0, deferred=0.05),
    )
    monkeypatch.setattr(plots, "as_data", lambda figure: plt.close(figure) or "data:,")
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    lines = [line for line in lines if not line.startswith("pip ")]
    assert len(lines) == 4
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    policy = Policy.load("routing-20")
    assert policy.deferral == REMOTE
    assert policy.promise.share == 0.2
    names: dict[str, object] = {}
    (code,) = blocks("python")
    exec(compile(code, PAGE.name, "exec"), names)
    assert names["decision"].route in ("edge", "cloud")


def test_every_score_is_on_the_page():
    assert {name for name in NAMES if f"`{name}`" not in TEXT} == set()


def test_the_numbers_of_rows_are_those_of_the_code():
    """Catches a table that was not made by the function that the page names."""
    found = re.findall(r"^\| (\d+) % \| (.+) \|$", TEXT, re.M)
    assert [int(risk) for risk, _ in found] == [10, 5, 2, 1]
    for percent, cells in found:
        risk = int(percent) / 100
        expected = [kept_needed(risk, 0.95, share * risk) for share in (0, 0.2, 0.4, 0.6, 0.8)]
        assert [int(cell.replace(",", "")) for cell in cells.split(" | ")] == expected
    assert kept_needed(0.05, 0.95, 0.01) == pytest.approx(124)
