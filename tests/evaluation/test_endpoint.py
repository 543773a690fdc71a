"""Answers of a server that speaks OpenAI's protocol; the server is a function of this file."""

import json

import httpx2 as httpx
import pytest
import torch
from helpers.exported import save_adapter
from helpers.rows import ANSWER, USER, row

from shadowpeft import ShadowedModel
from shadowpeft.errors import ConfigError, DataError, UserError
from shadowpeft.evaluation import endpoint
from shadowpeft.evaluation.endpoint import Endpoint
from shadowpeft.evaluation.scored import scored_answers
from shadowpeft.export import export
from shadowpeft.storage import stock_models

URL = "http://127.0.0.1:9/v1"
PAIR = row("rows:0", prompt="Request: hi\nIntent:", completion=" play music")
CHAT = row("rows:1", messages=[USER, ANSWER])
CONTENT = {
    "content": [
        {"token": "play", "logprob": -0.1, "top_logprobs": [{"logprob": -3.1}, {"logprob": -0.1}]},
        {"token": " music", "logprob": -0.2, "top_logprobs": [{"logprob": -0.2}, {"logprob": -1.2}]},
    ]
}
COLUMNS = {"token_logprobs": [-0.1, -0.2], "top_logprobs": [{"a": -3.1, "b": -0.1}, {"a": -0.2, "b": -1.2}]}


def serving(reply, asked=None):
    """A server that answers every question alike, and notes what it was asked."""

    def handle(request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "small"}]})
        if asked is not None:
            asked.append(
                (request.url.path, json.loads(request.content), request.headers.get("authorization"))
            )
        return reply() if callable(reply) else httpx.Response(200, json=reply)

    return httpx.MockTransport(handle)


def completion(logprobs, text=" play music"):
    return {"choices": [{"text": text, "logprobs": logprobs}]}


def ask(reply, rows=(PAIR,), asked=None, **settings):
    server = Endpoint(URL, transport=serving(reply, asked), **settings)
    return server.answers(rows, None, workers=2, progress=False)


@pytest.mark.parametrize("logprobs", [CONTENT, COLUMNS])
def test_both_ways_to_tell_tokens_are_read(logprobs):
    """Catches margins of the order that a server sends, in place of the likeliest two."""
    (found,) = ask(completion(logprobs))
    assert (found.answer, found.expected, found.right) == ("play music", "play music", True)
    assert found.tokens.logprobs == (-0.1, -0.2)
    assert found.tokens.margins == pytest.approx((3.0, 1.0))
    assert found.tokens.entropies is None


def test_an_end_without_text_is_no_token():
    """Catches a score that depends on whether a server tells of the end, as llama.cpp sometimes does."""
    end = {"token": "", "logprob": -9.0, "top_logprobs": []}
    (found,) = ask(completion({"content": [*CONTENT["content"], end]}))
    assert found.tokens.logprobs == (-0.1, -0.2)


def test_a_part_of_a_letter_is_a_token():
    """Catches a token that is lost because its bytes are no text yet: a gateway reads it, too."""
    part = {"token": "", "logprob": -9.0, "top_logprobs": [], "bytes": None}
    content = CONTENT["content"]
    for entries in ([content[0], {**part, "bytes": []}, content[1]], [*content, part]):
        (found,) = ask(completion({"content": entries}))
        assert -9.0 in found.tokens.logprobs


def test_what_a_server_is_asked():
    asked = []
    ask(completion(CONTENT), asked=asked, key="secret")
    (path, body, key) = asked[0]
    assert (path, key) == ("/v1/completions", "Bearer secret")
    assert body == {
        "model": "small", "prompt": "Request: hi\nIntent:", "max_tokens": 11, "temperature": 0, "logprobs": 2
    }  # fmt: skip
    asked.clear()
    reply = {"choices": [{"message": {"content": "two is four "}, "logprobs": CONTENT}]}
    (found,) = ask(reply, rows=[CHAT], asked=asked, model="big")
    (path, body, key) = asked[0]
    assert (path, key) == ("/v1/chat/completions", None)
    assert body["messages"] == [USER]
    assert (body["model"], body["logprobs"], body["top_logprobs"]) == ("big", True, 2)
    assert found.right


def test_answers_stand_in_the_order_of_the_rows():
    """Catches replies in the order in which they arrive."""

    def echo(request):
        prompt = json.loads(request.content)["prompt"]
        return httpx.Response(200, json=completion(CONTENT, prompt))

    rows = [row(prompt=str(number), completion="x") for number in range(20)]
    server = Endpoint(URL, "small", transport=httpx.MockTransport(echo))
    assert [each.answer for each in server.answers(rows, 3, 4, progress=False)] == [str(n) for n in range(20)]


def test_entropies_of_our_own_gateway_are_read():
    content = [entry | {"entropy": 0.5} for entry in CONTENT["content"]]
    assert ask(completion({"content": content}))[0].tokens.entropies == (0.5, 0.5)
    content[0].pop("entropy")
    assert ask(completion({"content": content}))[0].tokens.entropies is None


@pytest.mark.parametrize("logprobs", [None, {}, {"content": []}, {"token_logprobs": None}])
def test_a_server_without_log_probabilities_is_told(logprobs):
    with pytest.raises(UserError, match="gives no log-probabilities"):
        ask(completion(logprobs))


def test_an_empty_answer_has_no_tokens():
    (found,) = ask(completion(None, text=""))
    assert (found.answer, found.right, found.tokens.logprobs) == ("", False, ())


def test_a_busy_server_is_asked_again(monkeypatch):
    monkeypatch.setattr(endpoint, "_PAUSE", 0)
    replies = [httpx.Response(503), httpx.Response(429), httpx.Response(200, json=completion(CONTENT))]
    assert ask(lambda: replies.pop(0))[0].right
    replies = [httpx.Response(503, text="too\nmany")] * 4
    with pytest.raises(UserError, match=r"/completions replied 503: too many$"):
        ask(lambda: replies.pop(0))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (httpx.Response(400, json={"error": "no logprobs here"}), "replied 400: .*no logprobs here"),
        (httpx.Response(200, text="<html>"), "is not JSON"),
        (httpx.Response(200, json=[]), "none of OpenAI's protocol"),
        (httpx.Response(200, json={"choices": []}), "none of OpenAI's protocol"),
        (httpx.Response(200, json=completion({"content": [{"token": "a"}]})), "none of OpenAI's protocol"),
        (httpx.Response(200, json=completion("x")), "none of OpenAI's protocol"),
    ],
)
def test_a_server_that_fails_is_one_sentence(reply, message):
    with pytest.raises(UserError, match=message) as caught:
        ask(lambda: reply)
    assert "\n" not in str(caught.value)


def test_a_server_that_is_away_or_has_no_models(monkeypatch):
    monkeypatch.setattr(endpoint, "_PAUSE", 0)

    def away(request):
        raise httpx.ConnectError("refused")

    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/v1 cannot be reached \(ConnectError\)"):
        Endpoint(URL, transport=httpx.MockTransport(away))
    empty = httpx.MockTransport(lambda request: httpx.Response(200, json={"data": []}))
    with pytest.raises(UserError, match="names no model; say which one with --model"):
        Endpoint(URL, transport=empty)
    with pytest.raises(ConfigError, match="expected an address such as"):
        Endpoint("127.0.0.1:8080")


def test_rows_that_a_server_cannot_be_asked_are_refused():
    tools = row("rows:2", messages=[USER, ANSWER], tools=[{"type": "function"}])
    with pytest.raises(DataError, match="rows:2: tools cannot be sent"):
        ask(completion(CONTENT), rows=[tools])
    with pytest.raises(DataError, match="expected a row with the right answer"):
        ask(completion(CONTENT), rows=[row(text="once")])


@pytest.mark.slow
@pytest.mark.llama_cpp
def test_a_real_llama_cpp_says_what_the_model_says(tmp_path):
    """Catches a reply of llama.cpp that is read otherwise than it is meant, but for the end that it keeps."""
    pytest.importorskip("gguf")
    xllamacpp = pytest.importorskip("xllamacpp")
    base = save_adapter(tmp_path / "adapter", "implicit")
    export(base, str(tmp_path / "adapter"), str(tmp_path / "small.gguf"), to="gguf", dtype="float32")
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.verbosity = str(tmp_path / "small.gguf"), 0, 0
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.fit_params = 512, 1, 1, False
    server = xllamacpp.Server(params)
    shadowed = ShadowedModel.from_pretrained(
        stock_models.load_model(base, torch.float32), tmp_path / "adapter"
    )
    rows = [row(prompt="The river", completion=" flows"), row(prompt="A city", completion=" sleeps")]
    tokenizer = stock_models.load_tokenizer(base)
    wanted = scored_answers(shadowed.detached(), tokenizer, rows, max_new_tokens=6, progress=False)
    found = Endpoint(f"{server.listening_address}/v1").answers(rows, 6, workers=1, progress=False)
    for here, there in zip(wanted, found, strict=True):
        count = len(there.tokens.logprobs)
        assert there.answer == here.answer
        assert count in (len(here.tokens.logprobs), len(here.tokens.logprobs) - 1)
        assert there.tokens.logprobs == pytest.approx(here.tokens.logprobs[:count], abs=0.02)
        assert there.tokens.margins == pytest.approx(here.tokens.margins[:count], abs=0.04)
    del server
