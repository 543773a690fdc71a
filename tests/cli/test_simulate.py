"""`shadowpeft simulate`."""

import json
from dataclasses import replace

import pytest
from helpers.answered import REMOTE, made_up
from helpers.command_line import mistake, result
from matplotlib import pyplot as plt

from shadowpeft.cli import main
from shadowpeft.route import answered
from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Share
from shadowpeft.simulate import plots, strategies


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch):
    monkeypatch.setattr(plots, "as_data", lambda figure: plt.close(figure) or "data:,")


@pytest.fixture
def words(tmp_path):
    """A small simulation as a command line."""
    policy = calibrate(
        made_up(400, seed=1, deferred=0.1), Share(0.4, 0.95), "min_margin", REMOTE, "dev.jsonl", "ab" * 32
    )
    policy.save(tmp_path / "routing.json")
    write(tmp_path / "test.jsonl", made_up(100, deferred=0.1))
    return [
        "simulate", "--data", tmp_path / "test.jsonl", "--policy", tmp_path / "routing.json",
        "--output", tmp_path / "out", "--requests", 200, "--seeds", 1, "--robots", "1,3",
    ]  # fmt: skip


def write(path, rows):
    """Write rows under names of their own file."""
    answered.write([replace(row, where=f"test.jsonl:{at}") for at, row in enumerate(rows)], path)
    return path


def test_figures_rows_and_report_are_written(words, tmp_path, capsys):
    found = result(words, capsys)
    assert set(found["fleets"]) == {"1", "3"}
    assert strategies.POLICY in found["fleets"]["3"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rows.jsonl", "simulation.md", "simulation.html",
    }  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text("utf-8").splitlines()]
    ours = next(row for row in rows if (row["strategy"], row["robots"]) == (strategies.POLICY, 3))
    assert ours["right"] == found["fleets"]["3"][strategies.POLICY]["right"]


def test_a_sentence_says_what_came_of_it(words, capsys):
    assert main([str(word) for word in words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("With 3 robots the policy sends")
    assert "simulation.html" in out


def test_a_small_model_and_another_cloud_stand_beside(words, tmp_path, capsys):
    rows = made_up(100, deferred=0.1)
    small = write(tmp_path / "small.jsonl", rows)
    other = write(tmp_path / "lora.jsonl", [replace(row, right=True) for row in rows])
    more = ["--small", small, "--small-policy", tmp_path / "routing.json", "--other-cloud", other]
    found = result([*words, *more], capsys)["fleets"]["1"]
    assert found[strategies.OTHER_CLOUD]["right"] == 1.0
    assert found[strategies.SMALL_POLICY]["sent"] == found[strategies.POLICY]["sent"]


def test_bad_input_is_one_sentence(words, tmp_path, capsys):
    def said(*more):
        return mistake([*words, *more], capsys)

    assert "--small-policy is about the small model" in said("--small-policy", tmp_path / "routing.json")
    assert "no policy at" in said("--policy", tmp_path / "none.json")
    assert "robots must be whole numbers" in said("--robots", "0")
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    assert "an answered row needs the field 'answer'" in said("--data", plain)
    write(tmp_path / "few.jsonl", made_up(50))
    assert "the small model must answer the same rows" in said("--small", tmp_path / "few.jsonl")
    slow = write(tmp_path / "slow.jsonl", [replace(row, seconds=None) for row in made_up(20)])
    assert "no row says how long the edge's answer took" in said("--data", slow)
    assert not (tmp_path / "out").exists()


def test_calibration_rows_are_warned_of(words, tmp_path, capsys):
    """Catches a policy that is praised on the rows that chose it."""
    data = tmp_path / "dev.jsonl"
    answered.write([replace(row, where=f"dev.jsonl:{at}") for at, row in enumerate(made_up(50))], data)
    assert main([str(word) for word in [*words, "--data", data]]) == 0
    assert "the policy was calibrated on" in capsys.readouterr().err


def test_too_few_requests_for_the_queues_are_warned_of(words, capsys):
    assert main([str(word) for word in [*words, "--robots", "1,200", "--edge-seconds", "15"]]) == 0
    assert "200 robots: Too few requests for the queues to settle" in capsys.readouterr().err
    assert main([str(word) for word in words]) == 0
    assert "Too few" not in capsys.readouterr().err


def test_too_short_a_time_for_outages_is_warned_of(words, capsys):
    assert main([str(word) for word in [*words, "--away", "0.1", "--away-minutes", "5"]]) == 0
    err = capsys.readouterr().err
    assert "the simulation of 3 robots covers 33.3 minutes, too few for 20 outages" in err
    assert "--requests 6000" in err
    assert main([str(word) for word in [*words, "--away", "0.5", "--away-minutes", "0.1"]]) == 0
    assert "outages" not in capsys.readouterr().err
