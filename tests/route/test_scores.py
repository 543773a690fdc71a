"""Scores of an answer's tokens."""

import math

import pytest

from shadowpeft.errors import ConfigError, DataError
from shadowpeft.route.scores import NAMES, TokenScores, is_deferral, kind_of, score

THREE = TokenScores(logprobs=[-0.1, -2.0, -0.3], margins=[3.0, 0.5, 1.0], entropies=[0.2, 1.5, 0.4])
EXPECTED = {
    "mean_logprob": -0.8,
    "sum_logprob": -2.4,
    "min_logprob": -2.0,
    "q10_logprob": -1.66,
    "q25_logprob": -1.15,
    "median_logprob": -0.3,
    "mean_margin": 1.5,
    "min_margin": 0.5,
    "mean_entropy": -0.7,
    "max_entropy": -1.5,
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_scores_are_what_their_lines_say(name, expected):
    assert score(name, THREE, "any") == pytest.approx(expected)


def test_every_score_is_tested_and_described():
    """Catches a score without a line of documentation, or one that nobody tests."""
    of_classes = {name for name, kind in NAMES.items() if kind.one_entry}
    assert {*EXPECTED, *of_classes, "deferral"} == set(NAMES)
    assert all(len(kind.doc.split()) > 3 for kind in NAMES.values())


def test_a_class_has_a_probability_and_a_margin():
    chosen = TokenScores([math.log(0.7)], [math.log(0.7 / 0.2)], [0.8])
    assert score("class_probability", chosen, "play music") == pytest.approx(0.7)
    assert score("class_margin", chosen, "play music") == pytest.approx(math.log(3.5))
    with pytest.raises(DataError, match="chosen among classes, got one of 3 tokens"):
        score("class_margin", THREE, "any")


def test_the_deferral_answer_is_least_sure():
    assert score("deferral", THREE, " [REMOTE]\n", "[REMOTE]") == 0
    assert score("deferral", THREE, "[REMOTE] please", "[REMOTE]") == 1
    assert not is_deferral("", None)
    with pytest.raises(ConfigError, match="needs the deferral answer"):
        score("deferral", THREE, "any")


@pytest.mark.parametrize(
    "name", [name for name, kind in NAMES.items() if kind.falls and kind.needs != "deferral"]
)
def test_scores_that_fall_never_rise_with_another_token(name):
    """Catches a score by which a gateway would defer early what it keeps at the end."""
    found = [
        score(name, TokenScores(THREE.logprobs[:end], THREE.margins[:end], THREE.entropies[:end]), "any")
        for end in (1, 2, 3)
    ]
    assert found == sorted(found, reverse=True)


def test_the_mean_forgets_an_unsure_token_in_a_long_answer():
    """Shows the length bias: the same unsure token sinks a short answer and not a long one."""
    short, long = TokenScores([-3.0, -0.01]), TokenScores([-3.0] + [-0.01] * 40)
    assert score("mean_logprob", short, "any") < -1.5
    assert score("mean_logprob", long, "any") > -0.1
    assert score("min_logprob", short, "any") == score("min_logprob", long, "any")
    # The sum errs to the other side: a long answer of sure tokens looks unsure.
    assert score("sum_logprob", TokenScores([-0.1] * 40), "any") < score("sum_logprob", short, "any")


def test_missing_and_strange_numbers():
    with pytest.raises(DataError, match="needs margins"):
        score("min_margin", TokenScores([-0.1]), "any")
    with pytest.raises(DataError, match="got NaN"):
        score("min_logprob", TokenScores([-0.1, math.nan]), "any")
    assert score("min_margin", TokenScores([0.0], [math.inf]), "any") == 1000
    assert score("min_margin", TokenScores([], []), "") == -math.inf
    with pytest.raises(ConfigError, match=r"no score 'min_margins' \(did you mean 'min_margin'\?\)"):
        kind_of("min_margins")
