"""Answered rows and their file."""

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.answered import BY, REMOTE, made_up

from shadowpeft.errors import DataError
from shadowpeft.route.answered import Answerer, answerer_of, is_answered, read, tabulate, write
from shadowpeft.route.scores import TokenScores


def lines_of(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(json.loads(line), f"{path}:{at + 1}") for at, line in enumerate(lines)]


def test_what_is_written_is_read_again(tmp_path):
    rows = made_up(5, deferred=0.3)
    rows[1] = replace(
        rows[1], tokens=TokenScores((-0.5,)), cloud_right=None, seconds=None, cloud_seconds=None
    )
    write(rows, tmp_path / "answers.jsonl")
    lines = lines_of(tmp_path / "answers.jsonl")
    assert all(is_answered(fields) for fields, _ in lines)
    found = read(lines)
    tuples = [replace(row.tokens, logprobs=tuple(row.tokens.logprobs)) for row in rows]
    assert [row.tokens.logprobs for row in found] == [tokens.logprobs for tokens in tuples]
    assert [replace(row, tokens=None) for row in found] == [replace(row, tokens=None) for row in rows]
    assert found[1].tokens.margins is None


def test_rows_that_are_never_kept_have_the_least_score():
    rows = made_up(3)
    rows[0] = replace(rows[0], answer=f" {REMOTE}")
    rows[1] = replace(rows[1], tokens=TokenScores((), ()))
    table = tabulate(rows, "min_margin", REMOTE)
    assert table.kept_ever.tolist() == [False, False, True]
    assert tabulate(rows, "deferral", REMOTE).kept_ever.tolist() == [False, False, True]
    assert tabulate(rows, "min_margin", None).kept_ever.tolist() == [True, False, True]
    assert table.take(np.array([2])).scores.tolist() == [min(rows[2].tokens.margins)]


def test_the_cloud_is_known_of_all_rows_or_of_none():
    rows = made_up(3)
    assert tabulate(rows, "min_margin", None).cloud_right.dtype == bool
    rows[2] = replace(rows[2], cloud_right=None)
    assert tabulate(rows, "min_margin", None).cloud_right is None


def test_a_row_without_the_values_is_named():
    rows = [replace(made_up(1)[0], tokens=TokenScores((-0.1,)))]
    with pytest.raises(DataError, match=r"dev\.jsonl:1: the score 'min_margin' needs margins"):
        tabulate(rows, "min_margin", None)


def test_answers_of_two_models_are_refused():
    rows = made_up(2)
    assert answerer_of(rows) == BY
    with pytest.raises(DataError, match="answers of one model, got those of tiny"):
        answerer_of([rows[0], replace(rows[1], by=Answerer("other"))])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": "a", "logprobs": [-1]}, "needs the field 'right'"),
        ({"answer": 3, "logprobs": [-1], "right": True}, "'answer' must not be int"),
        ({"answer": "a", "logprobs": [None], "right": True}, "'logprobs' must be a list of numbers"),
        ({"answer": "a", "logprobs": [-1], "right": 1}, "'right' must not be int"),
        ({"answer": "a", "logprobs": [-1], "right": True, "by": "me"}, "no answered row"),
        ({"answer": "a", "logprobs": [-1], "right": True, "by": None}, "no answered row"),
        ({"answer": "a", "logprobs": [-1], "right": True, "margins": "x"}, "'margins' must be"),
    ],
)
def test_other_rows_are_refused(fields, message):
    with pytest.raises(DataError, match=message) as caught:
        read([(fields, "rows.jsonl:3")])
    assert str(caught.value).startswith("rows.jsonl:3: ")
