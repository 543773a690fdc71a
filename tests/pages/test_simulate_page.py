"""The page on simulation: its commands, its table of strategies and its Python."""

import re
import shlex
from dataclasses import replace

import pytest
from helpers.answered import REMOTE, made_up
from helpers.recipes import ROOT
from matplotlib import pyplot as plt

from shadowpeft.cli import _parser, calibrate, main
from shadowpeft.route import answered
from shadowpeft.route.calibrate import calibrate as calibrated
from shadowpeft.route.goals import Share
from shadowpeft.simulate import plots, strategies

TEXT = (ROOT / "docs" / "guides" / "simulate.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def commands():
    (text,) = blocks("bash")
    return [shlex.split(line)[1:] for line in text.replace("\\\n", " ").splitlines() if "shadowpeft " in line]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with what the first command writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "as_data", lambda figure: plt.close(figure) or "data:,")
    policy = calibrated(
        made_up(400, seed=1, deferred=0.1), Share(0.4, 0.95), "min_margin", REMOTE, "dev", "ab"
    )
    policy.save("routing/routing.json")
    rows = [replace(row, where=f"test.jsonl:{at}") for at, row in enumerate(made_up(100, deferred=0.1))]
    answered.write(rows, "routing/test_answers.jsonl")
    return rows


def test_the_commands_run(here, tmp_path):
    calibrating, simulating = [words for words in commands() if words[0] in ("calibrate", "simulate")]
    assert _parser.parse("calibrate", calibrate.run, calibrating[1:])["timed"] == 50
    assert main([*simulating, "--requests", "100", "--seeds", "1"]) == 0
    assert (tmp_path / "simulation" / "simulation.html").is_file()


def test_every_strategy_is_explained():
    names = {value for name, value in vars(strategies).items() if name.isupper()} | {f"{REMOTE} alone"}
    assert names == set(re.findall(r"^\| ([^|]+) \| [^|]+ \|$", TEXT, re.M)) - {"strategy", "---"}


def test_every_flag_that_is_named_exists():
    from shadowpeft.cli import simulate

    known = {f"--{name.replace('_', '-')}" for name in _parser.flags(_parser.build("simulate", simulate.run))}
    named = set(re.findall(r"--[a-z][a-z-]+", TEXT))
    assert named - known == {"--model", "--adapter", "--test", "--risk", "--deferral", "--timed"}


def test_the_python_runs(here):
    (code,) = blocks("python")
    names = {"rows": here}
    exec(code.replace('robots="1,100"', 'robots="1,100", requests=100, seeds=1, away_minutes=0.001'), names)
    assert names["result"].mean(100, "policy").p99 > 0
