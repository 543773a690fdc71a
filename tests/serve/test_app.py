"""The server over HTTP, asked by OpenAI's own client and by callers who do not keep to its protocol."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import openai
import pytest
from helpers.servers import Canned, FakeUpstream, client_of, gateway_of, policy, running, until

from shadowpeft.serve import app as module
from shadowpeft.serve.app import Gateway, Limits, Served
from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.local import LocalBackend
from shadowpeft.serve.routed import Role, Routed
from shadowpeft.serve.upstream import Upstream

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "what"}], "temperature": 0, "max_tokens": 12}


def post(address: str, body: Any, path: str = "/chat/completions", **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {
        "content-type": "application/json",
        **{name.replace("_", "-"): v for name, v in headers.items()},
    }
    return httpx.post(f"{address}{path}", content=content, headers=headers, timeout=20)


# Every role


@pytest.fixture(scope="module")
def served(models):
    """A gateway of every role: models here, an edge and a cloud here, and the same behind another gateway."""
    names = ("attached", "detached", "base", "drafting")
    local = LocalBackend({name: models[name] for name in names}, 4, max_tokens=90)
    here = {name: Served(local, name) for name in local.models}
    with running(Gateway(here).app(), local) as address:
        edge, cloud = Upstream("edge", f"{address}#detached"), Upstream("cloud", f"{address}#attached")
        # Between the scores of the two texts below.
        sure, away = policy(-1e3), policy(1e3)
        second = LocalBackend({name: models[name] for name in names}, 4, max_tokens=90)
        roles = {
            "kept": (Role(second, "detached"), Role(second, "attached"), sure),
            "sent": (Role(second, "detached"), Role(second, "attached"), away),
            "kept-there": (Role(edge, "edge"), Role(cloud, "cloud"), sure),
            "sent-there": (Role(edge, "edge"), Role(cloud, "cloud"), away),
        }
        there = {name: Served(Routed(*role), "routed", has_roles=True) for name, role in roles.items()}
        there |= {"edge": Served(edge, "edge"), "cloud": Served(cloud, "cloud", leaves=True)}
        there |= {name: Served(second, name) for name in second.models}
        with running(Gateway(there).app(), second, edge, cloud) as other, client_of(other) as client:
            yield client


ANSWERED_BY = {
    "attached": "attached", "detached": "detached", "base": "base", "drafting": "attached",
    "edge": "detached", "cloud": "attached", "kept": "detached", "sent": "attached",
    "kept-there": "detached", "sent-there": "attached",
}  # fmt: skip


@pytest.mark.parametrize("model", ANSWERED_BY)
def test_openais_client_works_against_every_role(model, served):
    """Catches a role whose text, tokens, counts or stream differ from those of the model that answers."""
    want = served.chat.completions.create(model=ANSWERED_BY[model], logprobs=True, top_logprobs=2, **CHAT)
    found = served.chat.completions.create(model=model, logprobs=True, top_logprobs=2, **CHAT)
    (choice,), (same,) = found.choices, want.choices
    assert (choice.message.content, choice.finish_reason) == (same.message.content, same.finish_reason)
    tokens, others = choice.logprobs.content, same.logprobs.content
    assert [token.token for token in tokens] == [token.token for token in others]
    assert [t.logprob for t in tokens] == pytest.approx([t.logprob for t in others], abs=1e-3)
    assert "".join(token.token for token in tokens) == choice.message.content
    assert found.usage == want.usage
    assert found.model == model
    stream = served.chat.completions.create(
        model=model, stream=True, stream_options={"include_usage": True}, **CHAT
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == want.usage
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == choice.message.content
    assert chunks[-2].choices[0].finish_reason == choice.finish_reason


@pytest.mark.parametrize("model", ["attached", "cloud", "sent-there"])
def test_completions_with_all_that_they_can_ask_for(model, served):
    settings: dict[str, Any] = {
        "model": model,
        "prompt": ["what is", "hello"],
        "max_tokens": 9,
        "seed": 3,
        "n": 2,
    }
    found = served.completions.create(logprobs=2, **settings)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in found.choices}) > 2
    for choice in found.choices:
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.text_offset[1] == len(choice.logprobs.tokens[0])
    # The same seeds, read along, in one stream.
    texts: dict[int, str] = {}
    for chunk in served.completions.create(stream=True, **settings):
        for part in chunk.choices:
            texts[part.index] = texts.get(part.index, "") + part.text
    assert [texts[index] for index in range(4)] == [choice.text for choice in found.choices]
    whole = found.choices[0].text
    stopped = served.completions.create(stop=whole[3:6], **{**settings, "n": 1, "prompt": "what is"})
    assert stopped.choices[0].text == whole[: whole.index(whole[3:6])]


def test_what_happened_is_told(served):
    """Catches headers and notes of another answer, and a route that is not the caller's."""
    raw = served.chat.completions.with_raw_response
    for header, route, reason in (("auto", "cloud", "deferred"), ("edge", "edge", "forced")):
        for stream in (False, True):
            reply = raw.create(model="sent", stream=stream, extra_headers={"x-shadow-route": header}, **CHAT)
            headers = reply.headers
            assert (headers["x-shadow-route"], headers["x-shadow-reason"]) == (route, reason)
            assert float(headers["x-shadow-milliseconds"]) > 0
            assert stream or headers["x-shadow-threshold"] == "1000.0"
            if stream:
                list(reply.parse())
            else:
                assert reply.parse().choices[0].shadow["route"] == route
    reply = raw.create(model="sent", **CHAT)
    # Who answered in the end.
    assert reply.headers["x-shadow-adapter"] == "default"
    for model, header, said in (
        ("cloud", "local-only", "answered elsewhere"),
        ("base", "edge", "needs a model with edge and cloud"),
        ("sent", "nowhere", "must be one of"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            raw.create(model=model, extra_headers={"x-shadow-route": header}, **CHAT)


def test_models_are_listed(served):
    assert [model.id for model in served.models.list()][:2] == ["kept", "sent"]
    assert served.models.retrieve("base").owned_by == "shadowpeft"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9' here; there are: kept"):
        served.models.retrieve("gpt-9")
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9' here"):
        served.chat.completions.create(model="gpt-9", **CHAT)


# Bodies


@pytest.fixture(scope="module")
def plain():
    gateway = gateway_of(Canned("one two three"), limits=Limits(body_bytes=20_000))
    with running(gateway.app()) as address:
        yield address, gateway


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        ({**CHAT, "tools": [1]}, 400),
        ({**CHAT, "model": "x"}, 404),
        (b" " * 20_001, 413),
        (b"[" * 19_000, 400),
    ],
)
def test_a_wrong_body_is_an_error_as_openai_writes_them(body, status, plain):
    reply = post(plain[0], body)
    assert reply.status_code == status
    assert reply.json()["error"].keys() == {"message", "type", "param", "code"}
    assert post(plain[0], CHAT).status_code == 200


def test_a_body_without_a_length_is_measured_as_it_comes(plain):
    def parts():
        for _ in range(30):
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    reply = httpx.post(f"{plain[0]}/chat/completions", content=parts(), headers=headers)
    assert reply.status_code == 413


def test_other_ways_to_ask_are_refused(plain):
    """Catches a page of another origin that may post what browsers send without asking."""
    assert post(plain[0], CHAT, content_type="text/plain").status_code == 415
    assert httpx.get(f"{plain[0]}/chat/completions").status_code == 405
    reply = post(plain[0], CHAT, path="/embeddings")
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "not_found_error")


@pytest.mark.parametrize(
    "sent", [b"", b"GET", b"POST /v1/completions HTTP/1.1\r\ncontent-length: 99\r\n\r\n{", b"\0" * 99]
)
def test_callers_that_break_off_do_no_harm(sent, plain):
    host, port = plain[0].removeprefix("http://").removesuffix("/v1").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(sent)
    assert post(plain[0], CHAT).status_code == 200


# Keys


def test_a_key_is_asked_for():
    gateway = gateway_of(Canned(), keys=["first", "zweiter-schlüssel"])
    with running(gateway.app()) as address:
        for key, status in (
            (None, 401),
            ("Bearer", 401),
            ("Bearer firs", 401),
            ("Basic first", 401),
            ("bearer first", 200),
        ):
            headers = {} if key is None else {"authorization": key}
            assert post(address, CHAT, **headers).status_code == status
            assert httpx.get(f"{address}/models", headers=headers).status_code == status
        assert httpx.get(f"{address[:-3]}/health").status_code == 200
        with client_of(address, "wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


# Limits


def test_more_than_the_queue_holds_are_told_to_come_again():
    """Catches a server that takes all and answers none, and a queue that loses or overtakes."""
    released = threading.Event()
    backend = Canned("one two", held=released)
    gateway = gateway_of(backend, limits=Limits(concurrency=2, queue=3))

    async def ask_all(address: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=20) as client:
            asks = [
                asyncio.create_task(client.post(f"{address}/chat/completions", json=CHAT)) for _ in range(8)
            ]
            # Nobody is answered yet, so the first three replies are refusals.
            replies = asyncio.as_completed(asks)
            assert [(await next(replies)).status_code for _ in range(3)] == [429] * 3
            assert (gateway.gate.inside, gateway.gate.waiting) == (2, 3)
            released.set()
            return await asyncio.gather(*asks)

    with running(gateway.app()) as address:
        replies = asyncio.run(ask_all(address))
        assert sorted(reply.status_code for reply in replies) == [200] * 5 + [429] * 3
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert (refused.json()["error"]["code"], refused.headers["retry-after"]) == ("queue_full", "1")
        assert len(backend.asks) == 5
        assert (gateway.gate.inside, gateway.gate.waiting) == (0, 0)
        assert (
            gateway.metrics.value(
                "requests_total", endpoint="/v1/chat/completions", model="canned", status="429"
            )
            == 3
        )


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_is_ended(stream, monkeypatch):
    monkeypatch.setattr(module, "HEADERS", 0.05)
    backend = Canned("one two", held=threading.Event())
    gateway = gateway_of(backend, limits=Limits(seconds=1.0))
    with running(gateway.app()) as address:
        reply = post(address, {**CHAT, "stream": stream})
        assert backend.closed == 1
    assert reply.status_code == (200 if stream else 504)
    assert "took longer than 1 s" in reply.text
    assert reply.text.endswith("[DONE]\n\n") == stream


def test_a_server_that_ends_lets_nobody_in():
    gateway = gateway_of(Canned())
    with running(gateway.app()) as address:
        gateway.gate.closing = True
        reply = post(address, CHAT)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "shutting_down")
        assert httpx.get(f"{address[:-3]}/health").status_code == 503


# Streams


def test_silence_is_broken_by_pings(monkeypatch):
    """Catches a caller or proxy that gives up during a long prefill: it waits for headers, then for bytes."""
    monkeypatch.setattr(module, "PING", 0.05)
    monkeypatch.setattr(module, "HEADERS", 0.05)
    backend = Canned("one", held=threading.Event())
    with running(gateway_of(backend).app()) as address:
        text = ""
        # The headers come while nothing is said.
        with httpx.stream("POST", f"{address}/chat/completions", json={**CHAT, "stream": True}) as reply:
            for part in reply.iter_text():
                text += part
                if text.count(": ping\n\n") >= 3:
                    backend.held.set()
        assert text.endswith("[DONE]\n\n")
        backend.held.clear()
        threading.Timer(0.3, backend.held.set).start()
        with client_of(address) as client:
            chunks = list(client.chat.completions.create(model="canned", stream=True, **CHAT))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["one"]


def _all_of(answer: Any) -> None:
    list(answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [0, 2])
def test_a_failure_is_told_where_the_reply_is(stream, before):
    """Catches an error after the headers that looks like a complete answer."""
    backend = Canned("one two three", fails_before=before, error=RequestError("no memory", 502))
    with running(gateway_of(backend).app()) as address:
        reply = post(address, {**CHAT, "stream": stream})
        with client_of(address) as client, pytest.raises(openai.APIError, match="no memory"):
            _all_of(client.chat.completions.create(model="canned", stream=stream, **CHAT))
    assert reply.status_code == (200 if stream and before else 502)
    if stream and before:
        last, done = reply.text.strip().split("\n\n")[-2:]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert done == "data: [DONE]"


def leave_after(address: str, is_so: Callable[[], Any]) -> None:
    """Ask, and leave without an answer as soon as something is so."""

    async def run() -> None:
        async with httpx.AsyncClient(timeout=20) as client:
            asked = asyncio.create_task(client.post(f"{address}/chat/completions", json=CHAT))
            await asyncio.to_thread(until, is_so)
            asked.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asked

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_that_leaves_stops_the_work(stream):
    """Catches an answer that is written to its end for nobody, here or at the server behind."""
    backend = Canned("one two", held=threading.Event(), held_from=1)
    gateway = gateway_of(backend)
    with running(gateway.app()) as address:
        if stream:
            body = {**CHAT, "stream": True}
            with httpx.stream("POST", f"{address}/chat/completions", json=body, timeout=20) as reply:
                next(reply.iter_text())
        else:
            leave_after(address, lambda: backend.said == 1)
        until(lambda: backend.closed == 1)
        until(lambda: gateway.metrics.value("clients_left_total") == 1)
        assert gateway.gate.inside == 0


def test_a_caller_that_leaves_stops_the_work_elsewhere():
    fake = FakeUpstream((b": ping\n\n", 60.0))
    with running(fake.app()) as there:
        upstream = Upstream("cloud", there)
        with running(gateway_of(upstream).app(), upstream) as address:
            leave_after(address, lambda: fake.begun == 2)
            until(lambda: fake.left == 1)


# What is told of the server


def test_counts_and_health(plain):
    address, gateway = plain
    before = gateway.metrics.value("tokens_total", kind="completion")
    post(address, CHAT)
    text = httpx.get(f"{address[:-3]}/metrics").text
    assert f'shadowpeft_tokens_total{{kind="completion"}} {before + 3}' in text
    assert "shadowpeft_requests_inside 0.0" in text
    assert httpx.get(f"{address[:-3]}/health").json() == {"status": "ok"}
    assert httpx.get(f"{address}/shadow").json() == {"models": ["canned"]}


def test_the_log_has_no_word_of_a_text(plain, caplog):
    caplog.set_level("INFO")
    post(plain[0], {**CHAT, "messages": [{"role": "user", "content": "a secret"}]})
    post(plain[0], {**CHAT, "messages": "a secret"})
    until(lambda: len(caplog.records) >= 2)
    assert "/v1/chat/completions canned 200" in caplog.text
    assert "secret" not in caplog.text
    assert "three" not in caplog.text
