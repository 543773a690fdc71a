"""Who answers for a calibration."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
from helpers.rows import row

from shadowpeft.errors import DataError
from shadowpeft.evaluation import roles
from shadowpeft.evaluation.roles import (
    LocalRole,
    ServerRole,
    answered_rows,
    column_rights,
    identity_of,
    seconds_of,
)
from shadowpeft.evaluation.scored import Scored, scored_answers, scored_labels
from shadowpeft.route.answered import Answerer
from shadowpeft.route.scores import TokenScores

ROWS = [row(f"rows:{at}", prompt=f"{at}", completion=" two", big=" two" if at else "four") for at in range(3)]
BY = Answerer("tiny")


class Fixed(NamedTuple):
    """Gives the same answers to whatever rows."""

    texts: list[str]

    def answer(self, rows, progress=True):
        return [Scored(text, "two", text == "two", TokenScores((-0.1,))) for text in self.texts]


def test_the_cloud_is_whom_it_is_said_to_be():
    """Catches the edge's own correctness in place of the cloud's, and rows that are shuffled."""
    edge, cloud = Fixed(["two", "one", "two"]), Fixed(["one", "two", "two"])
    found = answered_rows(ROWS, edge, BY, cloud, None)
    assert [each.right for each in found] == [True, False, True]
    assert [each.cloud_right for each in found] == [False, True, True]
    assert [each.where for each in found] == ["rows:0", "rows:1", "rows:2"]
    assert [each.cloud_right for each in answered_rows(ROWS, edge, BY, None, "big")] == [False, True, True]
    assert {each.cloud_right for each in answered_rows(ROWS, edge, BY, None, None)} == {None}


class Slow(NamedTuple):
    """Takes a known time of a clock for a row, and notes what it was asked."""

    seconds: float
    clock: list[float]
    asked: list
    tokens: int | None = None

    def answer(self, rows, progress=True):
        self.asked.append((len(rows), self.tokens))
        self.clock[0] += self.seconds * len(rows)
        return [Scored("two", "two", True, TokenScores((-0.1,) * 4)) for _ in rows]

    def within(self, tokens):
        return self._replace(tokens=tokens)


def test_seconds_are_those_of_single_answers(monkeypatch):
    """Catches the edge's seconds noted as the cloud's, a time without a warm start, and answers cut short."""
    clock = [100.0]
    monkeypatch.setattr(roles, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    edge, cloud = Slow(0.01, clock, []), Slow(0.03, clock, [])
    found = answered_rows(ROWS, edge, BY, cloud, None, timed=2)
    assert edge.asked == cloud.asked == [(3, None), (1, 4), (1, 4), (1, 4)]
    assert [each.seconds for each in found] == [0.01, 0.01, None]
    assert [each.cloud_seconds for each in found] == [0.03, 0.03, None]
    assert {each.seconds for each in answered_rows(ROWS, edge, BY, cloud, None)} == {None}
    assert {each.cloud_seconds for each in answered_rows(ROWS, edge, BY, None, "big", timed=2)} == {None}


@pytest.mark.parametrize(
    ("timed", "measured"),
    [(1, [0]), (3, [0, 3, 6]), (4, [0, 2, 5, 7]), (10, [*range(10)]), (99, [*range(10)])],
)
def test_seconds_are_of_rows_from_all_over_the_file(timed, measured):
    """Catches the first rows alone, which may be the short ones, and a row that is measured twice."""
    rows, role = (
        [row(f"rows:{at}", prompt=f"{at}", completion=" two") for at in range(10)],
        Slow(0.0, [0.0], []),
    )
    found = seconds_of(rows, role, role.answer(rows), timed)
    assert [at for at, each in enumerate(found) if each is not None] == measured
    assert len(role.asked) == 1 + 1 + len(measured)


def test_a_server_within_a_limit_answers_no_longer():
    role = ServerRole(None, workers=2, max_new_tokens=9).within(4)
    assert (role.max_new_tokens, role.workers) == (4, 2)


def test_a_role_within_a_limit_answers_no_longer(shadowed, tokenizer):
    role = LocalRole(shadowed, tokenizer, batch_size=2, max_new_tokens=3).within(2)
    (found,) = role.answer([row(prompt="what is", completion=" two")], progress=False)
    assert len(found.tokens.logprobs) <= 2


def test_a_column_without_an_answer_is_told():
    with pytest.raises(DataError, match="rows:0: the column 'large' must hold the cloud's answer"):
        column_rights(ROWS, "large")


def test_a_model_here_generates_or_chooses(shadowed, tokenizer):
    role = LocalRole(shadowed, tokenizer, batch_size=2, max_new_tokens=3)
    rows = [row(prompt="what is", completion=" two")]
    assert role.answer(rows) == scored_answers(shadowed, tokenizer, rows, max_new_tokens=3, progress=False)
    labels = [" two", " four"]
    chooser = LocalRole(shadowed, tokenizer, batch_size=2, labels=labels)
    assert chooser.answer(rows) == scored_labels(shadowed, tokenizer, rows, labels, batch_size=2)


def test_an_adapter_is_known_by_its_weights(shadowed, tmp_path):
    shadowed.save_pretrained(tmp_path / "one")
    first = identity_of("base", str(tmp_path / "one"), "http://edge/v1")
    assert (first.model, first.adapter, first.endpoint) == ("base", str(tmp_path / "one"), "http://edge/v1")
    weights = tmp_path / "one" / "shadow.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    assert identity_of("base", str(tmp_path / "one")).adapter_hash != first.adapter_hash
    assert identity_of("base", None) == Answerer("base")
