"""`shadowpeft calibrate`."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.answered import REMOTE, made_up
from helpers.command_line import mistake, result
from helpers.runs import write_rows
from matplotlib import pyplot as plt

from shadowpeft.cli import main
from shadowpeft.route import answered, plots
from shadowpeft.route.policy import Policy

PROMPTS = ("what is", "hello", "two plus", "the city", "you are", "system what", "four is", "think two")


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch):
    monkeypatch.setattr(plots, "as_data", lambda figure: plt.close(figure) or "data:,")


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A file of answered rows."""
    folder = tmp_path_factory.mktemp("answers")
    answered.write(made_up(800, shift=5.0, deferred=0.1), folder / "answers.jsonl")
    answered.write(made_up(300, seed=1, shift=5.0, deferred=0.1), folder / "test.jsonl")
    return folder


def questions(folder, right="four", count=40):
    rows = [
        {"prompt": " ".join((PROMPTS[at % 8], PROMPTS[at // 8 % 8])), "completion": f" {right}", "big": right}
        for at in range(count)
    ]
    return write_rows(folder / "rows.jsonl", rows)


def test_answers_of_an_earlier_run_serve_again(answers, tmp_path, capsys):
    """Catches a summary of another set, and files that are not where they are said to be."""
    words = ["calibrate", "--data", answers / "answers.jsonl", "--test", answers / "test.jsonl"]
    words += ["--output", tmp_path / "out", "--deferral", REMOTE, "--risk", "0.05"]
    found = result(words, capsys)
    policy = Policy.load(tmp_path / "out")
    assert found["threshold"] == policy.threshold
    assert found["promise"] == {"risk": 0.05, "confidence": 0.95, "bound": policy.promise.bound}
    assert found["test"]["rows"] == 300
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "report.html",
        "report.md",
        "routing.json",
    ]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "at most 5.0 % of the kept answers" in said
    assert f"of 300 sent, {found['test']['errors']} of {found['test']['kept']} kept answers wrong" in said
    assert f"by the edge alone {100 * found['test']['edge']:.1f} %" in said


def test_the_shadow_alone_is_the_edge_and_the_attached_model_the_cloud(
    base_folder, adapter_folder, tmp_path, capsys
):
    """Catches edge and cloud that are swapped, and a policy that does not know its adapter."""
    from shadowpeft.cli._choice import ModelChoice
    from shadowpeft.cli._models import load
    from shadowpeft.data.rows import read_rows
    from shadowpeft.evaluation.roles import identity_of
    from shadowpeft.evaluation.scored import scored_answers

    rows_file = questions(tmp_path)
    shadowed, tokenizer = load(ModelChoice(str(base_folder), str(adapter_folder), device="cpu"))
    given = {"max_new_tokens": 2, "progress": False}
    alone = scored_answers(shadowed.detached(), tokenizer, read_rows(str(rows_file)), **given)
    ((wanted, _),) = Counter(each.answer for each in alone).most_common(1)
    rows_file = questions(tmp_path, right=wanted)
    rows = read_rows(str(rows_file))
    words = ["calibrate", "--data", rows_file, "--output", tmp_path / "out", "--defer", "0.3"]
    words += ["--model", base_folder, "--adapter", adapter_folder, "--max-new-tokens", "2"]
    found = result(words, capsys)
    assert found["adapter_hash"] == identity_of("", str(adapter_folder)).adapter_hash
    kept = [
        json.loads(line)
        for line in (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    attached = scored_answers(shadowed, tokenizer, rows, **given)
    alone = scored_answers(shadowed.detached(), tokenizer, rows, **given)
    assert [row["right"] for row in kept] == [each.right for each in alone]
    assert [row["cloud_right"] for row in kept] == [each.right for each in attached]
    assert 0 < sum(row["right"] for row in kept) < 40
    # The same from the answers that were kept, and with the cloud's answers in a column.
    again = ["calibrate", "--data", tmp_path / "out" / "answers.jsonl", "--output", tmp_path / "more"]
    assert result([*again, "--defer", "0.3"], capsys)["threshold"] == found["threshold"]
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert "holds the answers of an earlier run" in mistake(words, capsys)
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before
    words[words.index(tmp_path / "out")] = tmp_path / "column"
    assert "the column 'nope' must hold" in mistake([*words, "--cloud-answers", "nope"], capsys)
    assert not (tmp_path / "column").exists()
    result([*words, "--cloud-answers", "big"], capsys)
    kept = lines_of(tmp_path / "column" / "answers.jsonl")
    assert all(row["cloud_right"] for row in kept)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def server():
    """A server that has every second question right, and is sure of those; it keeps what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append(body)
            sure = len(body["prompt"]) % 2
            logprob = -0.01 * len(body["prompt"]) - (0 if sure else 2)
            told = {"token_logprobs": [logprob], "top_logprobs": [{"a": logprob, "b": -6.0}]}
            choice = {"text": " four" if sure else " two", "logprobs": told}
            reply = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}/v1", asked
    finally:
        running.shutdown()
        running.server_close()


def test_a_server_is_calibrated_by_what_it_tells(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EDGE_KEY", "secret")
    with server() as (url, asked):
        words = ["calibrate", "--endpoint", url, "--model", "small", "--data", questions(tmp_path)]
        words += [
            "--output",
            tmp_path / "out",
            "--cost",
            "edge=1,cloud=20,error=100",
            "--api-key-env",
            "EDGE_KEY",
        ]
        found = result([*words, "--cloud-answers", "big"], capsys)
    assert (found["model"], found["endpoint"], found["adapter"]) == ("small", url, None)
    assert len(asked) == 40
    assert found["promise"]["cloud"] == 20
    # It is sure where it is right, so that an exact half can be told.
    assert found["counts"]["errors"] == 0
    assert found["counts"]["sent"] == sum(len(body["prompt"]) % 2 == 0 for body in asked)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --risk, --defer and --cost, got none"),
        (["--risk", "0.1", "--defer", "0.1"], "got risk and defer"),
        (["--risk", "1.5"], "risk must be above 0 and below 1, got 1.5"),
        (["--cost", "1,2,3"], "cost must be like edge=1,cloud=20,error=100"),
        (["--cost", "edge=1,cloud=20,error=100", "--confidence", "0.9"], "no meaning with --cost"),
        (["--risk", "0.1", "--score", "margin"], "there is no score 'margin' (did you mean"),
        (["--risk", "0.1", "--score", "deferral"], "give --deferral"),
        (["--risk", "0.1", "--labels", "l.json"], "--labels has no meaning"),
        (["--risk", "0.1", "--batch-size", "0"], "must be 1 or more"),
        (["--risk", "0.0001"], "takes 59,912 rows or more, half to fit and half to test, got 800"),
        (["--risk", "0.1", "--endpoint", "here", "--model", "m"], "expected an address such as"),
        (["--risk", "0.1", "--endpoint", "http://x/v1", "--api-key-env", "NO_KEY_AT_ALL"], "is not set"),
    ],
)
def test_mistakes_are_one_sentence(answers, tmp_path, capsys, words, message):
    given = ["calibrate", "--data", answers / "answers.jsonl", "--output", tmp_path / "out"]
    assert message in mistake([*given, *words], capsys)
    assert not (tmp_path / "out").exists()


def test_rows_that_calibrate_and_test_are_told(answers, tmp_path, capsys):
    same = answers / "answers.jsonl"
    words = ["calibrate", "--data", same, "--test", same, "--output", tmp_path, "--risk", "0.1"]
    words += ["--deferral", REMOTE]
    assert main([str(word) for word in words]) == 0
    assert "800 of the 800 test rows are calibration rows, too" in capsys.readouterr().err


def test_the_policy_of_two_models_answers_is_refused(tmp_path, capsys):
    rows = made_up(300)
    rows[7] = replace(rows[7], by=replace(rows[7].by, model="other"))
    answered.write(rows, tmp_path / "answers.jsonl")
    words = ["calibrate", "--data", tmp_path / "answers.jsonl", "--output", tmp_path / "out", "--risk", "0.1"]
    assert "expected the answers of one model" in mistake(words, capsys)
