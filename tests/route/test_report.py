"""The report of a policy."""

import re
from dataclasses import replace

import pytest
from helpers.answered import REMOTE, made_up
from matplotlib import pyplot as plt

from shadowpeft.route import plots
from shadowpeft.route.calibrate import calibrate
from shadowpeft.route.goals import Prices, Risk, Share
from shadowpeft.route.report import write_report

GOALS = {
    "With 95 % confidence at most 5.0 % of the kept answers": Risk(0.05, 0.95),
    "30.0 % of requests like these go to the cloud": Share(0.3, 0.95),
    "No other threshold costs less at 1 for an answer of the edge": Prices(1, 20, 100),
}


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch):
    monkeypatch.setattr(plots, "as_data", lambda figure: plt.close(figure) or "data:,")


def written(tmp_path, goal, rows, deferral=REMOTE, score="min_margin", **more):
    policy = calibrate(rows, goal, score, deferral, data="dev.jsonl", data_hash="cd" * 32)
    write_report(policy, rows, 0, tmp_path, **more)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    return policy, (tmp_path / "report.md").read_text(encoding="utf-8"), page


def cells(text, name):
    """The cells of the first line of that name."""
    line = re.search(rf"^\| {re.escape(name)} \|.*$", text, re.MULTILINE)[0]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("said", GOALS)
def test_a_report_says_what_is_promised(tmp_path, said):
    policy, text, page = written(tmp_path, GOALS[said], made_up(600, shift=5.0, deferred=0.1))
    assert said in text
    assert said in page
    assert cells(text, "promised")[2] == (
        "30.0 %" if isinstance(GOALS[said], Share) else f"{100 * policy.counts.sent / 600:.1f} %"
    )
    assert page.count("<img") == 3


def test_what_was_realised_stands_beside_it(tmp_path):
    """Catches a set of rows measured in place of another, and counts of another threshold."""
    test, shifted = made_up(500, seed=1, shift=3.0, deferred=0.1), made_up(300, seed=2, shift=0.0)
    policy, text, _ = written(tmp_path, Risk(0.05, 0.95), made_up(600, shift=5.0, deferred=0.1),
                              test=test, shifted=shifted)  # fmt: skip
    for name, rows in (("test", test), ("shifted", shifted)):
        kept = [row for row in rows if policy.decide(row.tokens, row.answer).route == "edge"]
        wrong = sum(not row.right for row in kept)
        found = cells(text, name)
        assert (found[1], found[4], found[5]) == (str(len(rows)), str(len(kept)), str(wrong))
        assert found[6] == f"{100 * wrong / len(kept):.1f} %"
    held = cells(text, "held-out half")
    assert (held[4], held[5]) == (str(policy.counts.kept), str(policy.counts.errors))
    assert "The picture shows the test rows" in text


def test_other_ways_stand_beside_the_policy(tmp_path):
    _, text, _ = written(tmp_path, Risk(0.05, 0.95), made_up(600, shift=5.0, deferred=0.1))
    quality = text.partition("## Quality")[2]
    for name in (
        "the policy", "[REMOTE] alone", "the small model alone", "the large model alone",
        "mean_entropy, as many sent", "oracle, as many sent", "at random, as many sent",
    ):  # fmt: skip
        assert len(cells(quality, name)) == 3


@pytest.mark.parametrize(("cloud", "is_said"), [(0.0, True), (0.97, False)])
def test_a_cloud_that_makes_fewer_answers_right_is_named(cloud, is_said, tmp_path):
    """Catches a report that recommends a policy by which answers are lost."""
    _, text, _ = written(tmp_path, Risk(0.05, 0.95), made_up(600, shift=5.0, deferred=0.1, cloud=cloud))
    assert ("fewer requests rightly than the edge alone" in text) == is_said


def test_without_a_cloud_or_entropies_their_parts_are_left_out(tmp_path):
    rows = [
        replace(row, cloud_right=None, tokens=replace(row.tokens, entropies=None))
        for row in made_up(600, shift=5.0)
    ]
    _, text, page = written(tmp_path, Risk(0.05, 0.95), rows, deferral=None)
    assert "Quality" not in text
    assert "entropy" not in text
    assert cells(text, "held-out half")[9] == "-"
    assert page.count("<img") == 2


def test_the_deferral_answer_as_the_score_has_a_report(tmp_path):
    _, text, _ = written(tmp_path, Risk(0.05, 0.95), made_up(1500, shift=6.0, deferred=0.1), score="deferral")
    assert cells(text, "held-out half")[4] != "0"
