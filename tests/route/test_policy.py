"""The policy and its file."""

import json
from dataclasses import replace

import pytest

from shadowpeft.errors import CheckpointError, ConfigError, DataError
from shadowpeft.route.policy import (
    CostPromise,
    Counts,
    Decision,
    DeferPromise,
    Policy,
    RiskPromise,
)
from shadowpeft.route.scores import TokenScores

POLICY = Policy(
    model="embedded",
    adapter="run/adapter",
    adapter_hash="ab" * 32,
    data="dev.jsonl",
    data_hash="cd" * 32,
    score="min_margin",
    deferral="[REMOTE]",
    threshold=1.0,
    knots=((0.0, 0.5), (2.0, 0.1)),
    promise=RiskPromise(risk=0.2, confidence=0.95, bound=0.19),
    counts=Counts(rows=200, fitted=100, held=100, kept=60, errors=3, sent=80),
)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (1.0, Decision("edge", 1.0, 0.3, 1.0)),
        (0.5, Decision("cloud", 0.5, 0.4, 1.0)),
        (9.0, Decision("edge", 9.0, 0.1, 1.0)),
    ],
)
def test_answers_at_the_threshold_are_kept(margin, expected):
    assert POLICY.decide(TokenScores([-0.1], [margin]), "yes") == expected


def test_what_is_no_answer_goes_to_the_cloud():
    """Catches a deferral answer that is kept because the model is sure of it."""
    assert POLICY.decide(TokenScores([-0.1], [9.0]), "[REMOTE]") == Decision("cloud", 9.0, 1.0, 1.0)
    assert POLICY.decide(TokenScores([], []), "").route == "cloud"


def test_a_server_without_the_values_is_told():
    with pytest.raises(DataError, match="needs margins"):
        POLICY.decide(TokenScores([-0.1]), "yes")


@pytest.mark.parametrize(
    "promise", [POLICY.promise, DeferPromise(0.2, 0.95, 0.15, 0.26), CostPromise(1, 20, 100, 7.5)]
)
def test_a_saved_policy_is_the_same(promise, tmp_path):
    policy = replace(POLICY, promise=promise)
    policy.save(tmp_path / "routing.json")
    assert Policy.load(tmp_path / "routing.json") == policy
    assert Policy.load(tmp_path) == policy


def test_another_adapter_is_refused():
    POLICY.refuse_other("ab" * 32)
    POLICY.refuse_other(None)
    with pytest.raises(ConfigError, match=r"calibrated for the adapter run/adapter \(abababababab\)"):
        POLICY.refuse_other("ef" * 32)


def changed(path, **fields):
    values = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "its format is not 1"),
        ({"threshold": "1"}, "threshold must be a number"),
        ({"threshold": float("nan")}, "threshold must be"),
        ({"threshold": float("inf")}, "threshold must be a finite number"),
        ({"score": "margin"}, "there is no score 'margin'"),
        ({"knots": [[0, 0.5], [0, 0.1]]}, "knots must have rising scores"),
        ({"knots": [[0, 0.1], [1, 0.5]]}, "probabilities that do not rise"),
        ({"knots": [[0, 1.5]]}, "knots must have"),
        ({"knots": []}, "knots must hold"),
        ({"knots": [1]}, "knots must hold pairs of numbers"),
        ({"model": None}, "model must have a value"),
        ({"promise": {"kind": "hope"}}, "got 'hope'"),
        ({"promise": {}}, "promise must be of the kind risk or defer or cost, got None"),
        ({"promise": []}, "promise must be"),
        ({"promise": {"kind": []}}, "promise must be"),
        ({"promise": {"kind": "risk", "risk": 2, "confidence": 0.9, "bound": 0.1}}, "risk must be"),
        ({"counts": {"rows": 1}}, "counts must hold errors, fitted, held, kept, rows, sent, got rows"),
        ({"counts": None}, "counts must hold"),
        ({"counts": {"rows": -1, "fitted": 1, "held": 1, "kept": 1, "errors": 1, "sent": 1}}, "rows must be"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path, fields, message):
    path = tmp_path / "routing.json"
    POLICY.save(path)
    changed(path, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        Policy.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", "\xff", '{"threshold": 1}', "[" * 100_000])
def test_a_foreign_file_is_one_sentence(tmp_path, content):
    (tmp_path / "routing.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match="is not a policy that can be read"):
        Policy.load(tmp_path)


def test_a_missing_file_names_the_verb():
    with pytest.raises(CheckpointError, match="shadowpeft calibrate writes one"):
        Policy.load("nowhere/routing.json")
