"""Servers elsewhere: what is sent to them, and what becomes of their failures."""

import asyncio
from contextlib import aclosing

import pytest
from helpers.servers import DONE, USAGE, WHOLE, FakeUpstream, chunk, logprobs, running, until

from shadowpeft.errors import ConfigError, UserError
from shadowpeft.serve import upstream as module
from shadowpeft.serve.answers import joined
from shadowpeft.serve.backend import Piece, Usage
from shadowpeft.serve.breaker import Breaker
from shadowpeft.serve.errors import UpstreamError
from shadowpeft.serve.protocol import Ask
from shadowpeft.serve.upstream import Upstream, split

ASK = Ask(messages=({"role": "user", "content": "what"},), max_tokens=9, top=2)
NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)


def asked(
    address: str, *asks: Ask, seconds: float = 5.0, breaker: Breaker | None = None
) -> list[Piece | UpstreamError]:
    """Ask one after the other; return the answers or why there are none."""

    async def run() -> list[Piece | UpstreamError]:
        upstream = Upstream("cloud", address, "secret", seconds, breaker=breaker)
        found: list[Piece | UpstreamError] = []
        for ask in asks:
            try:
                async with aclosing(upstream.answer(ask)) as pieces:
                    found.append(joined([piece async for piece in pieces]))
            except UpstreamError as error:
                found.append(error)
        await upstream.close()
        return found

    return asyncio.run(run())


def test_what_is_sent_and_what_comes():
    """Catches a field that does not reach the server, and tokens, end or counts that get lost on the way."""
    fake = FakeUpstream((b": ping\n\n", chunk("y", **logprobs("y")), *WHOLE[0:1], *WHOLE[1:]))
    ask = Ask("m", None, ASK.messages, "", 9, 0.5, 0.9, 3, ("a",), 2, True)
    text = Ask(prompt="what ", begun="is", temperature=0.0, top=2)
    ids = Ask(prompt=(1, 2), max_tokens=1)
    begun = Ask(messages=ASK.messages, begun="ye")
    with running(fake.app()) as address:
        answer, *_ = asked(address, ask, text, ids, begun)
    assert (answer.text, answer.finish, answer.usage) == ("yyes", "stop", Usage(3, 2))
    assert [(t.text, t.logprob, t.top) for t in answer.tokens] == [
        (word, -0.1, ((word, -0.1), ("x", -1.1))) for word in ("y", "yes")
    ]
    always = {"model": "fake", "stream": True, "stream_options": {"include_usage": True}}
    plain = {"temperature": 1.0, "top_p": 1.0}
    messages = [{"role": "user", "content": "what"}]
    assert fake.bodies == [
        {
            **always, "messages": messages, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "seed": 3,
            "stop": ["a"], "logprobs": True, "top_logprobs": 2,
        },
        {**always, **plain, "temperature": 0.0, "prompt": "what is", "logprobs": 2},
        {**always, **plain, "prompt": [1, 2], "max_tokens": 1},
        {
            **always, **plain, "messages": [*messages, {"role": "assistant", "content": "ye"}],
            "continue_final_message": True, "add_generation_prompt": False,
        },
    ]  # fmt: skip


def test_older_log_probabilities_in_columns():
    """Catches margins of the wrong sign: some servers put the chosen token last."""
    columns = {
        "tokens": ["a"],
        "token_logprobs": [-2.0],
        "top_logprobs": [{"a": -2.0, "b": -1.0}],
        "entropies": [0.5],
    }
    choice = b'data: {"choices": [{"index": 0, "text": "a", "logprobs": %s, "finish_reason": "length"}]}\n\n'
    import json

    fake = FakeUpstream((choice % json.dumps(columns).encode(), DONE))
    with running(fake.app()) as address:
        (answer,) = asked(address, Ask(prompt="x", top=2))
    (token,) = answer.tokens
    assert (token.text, token.logprob, token.top, token.entropy) == (
        "a",
        -2.0,
        (("b", -1.0), ("a", -2.0)),
        0.5,
    )
    # It did not count them, so they are counted here.
    assert answer.usage == Usage(0, 1)


def test_a_token_without_text_is_a_part_of_a_letter():
    """Catches a token that a score does not see, and the caller does not get."""
    parts = (*WHOLE[:1], chunk("", **logprobs("", -9.0)), *WHOLE[1:])
    with running(FakeUpstream(parts).app()) as address:
        (answer,) = asked(address, ASK)
    assert [(token.text, token.logprob) for token in answer.tokens][1] == ("", -9.0)


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ((b"data: {not json\n\n",), "garbage"),
        ((b"data: [1]\n\n",), "garbage"),
        ((b'data: {"choices": [{"delta": {"content": 5}}]}\n\n',), "garbage"),
        ((b'data: {"choices": [1]}\n\n',), "garbage"),
        ((b"x" * 2_000_000,), "garbage"),
        ((b"\x00\xff\n\n", *WHOLE[:1]), "cut"),
        ((chunk("yes", "content_filter", **logprobs("yes")), DONE), "garbage"),
        ((b'data: {"error": {"message": "no memory"}}\n\n',), "status"),
        ((*WHOLE[:1], None), "cut"),
        (WHOLE[:1], "cut"),
        ((None,), "cut"),
        ((chunk("yes"), *WHOLE[1:]), "no_logprobs"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(parts, kind):
    """Catches garbage that gets through, and half an answer that passes for a whole one."""
    fake = FakeUpstream(parts)
    with running(fake.app()) as address:
        (error,) = asked(address, ASK)
    assert isinstance(error, UpstreamError)
    assert error.kind == kind
    assert error.status == 502
    assert error.message.startswith("the cloud ")


def test_a_reply_that_is_no_stream_is_an_error():
    with running(FakeUpstream(content_type="text/html").app()) as address:
        (error,) = asked(address, ASK)
    assert "in place of a stream" in error.message


def test_tries_end_with_the_first_byte():
    """Catches a request that is answered twice, and one that is given up although nothing had come."""
    refused, cut = FakeUpstream(status=[503, 429, 200]), FakeUpstream((*WHOLE[:1], None))
    with running(refused.app()) as address, running(cut.app()) as other:
        assert asked(address, ASK)[0].text == "yes"
        assert isinstance(asked(other, ASK)[0], UpstreamError)
    assert (len(refused.bodies), len(cut.bodies)) == (3, 1)


def test_tries_are_bounded():
    away, wrong = FakeUpstream(status=[503]), FakeUpstream(status=[400])
    with running(away.app()) as address, running(wrong.app()) as other:
        found, refused = asked(address, ASK)[0], asked(other, ASK)[0]
    assert (found.status, len(away.bodies)) == (503, module.TRIES)
    # The caller's own mistake, which is told in the server's words.
    assert (refused.status, refused.message, len(wrong.bodies)) == (
        400,
        "the cloud refused the request: status 400",
        1,
    )


def test_a_silent_server_is_given_up():
    """Catches a hung server that holds its callers."""
    hung, slow = FakeUpstream((5.0,)), FakeUpstream((*WHOLE[:1], 5.0))
    with running(hung.app()) as address, running(slow.app()) as other:
        errors = [*asked(address, ASK, seconds=0.2), *asked(other, ASK, seconds=0.2)]
    assert [(error.kind, error.status) for error in errors] == [("timeout", 504)] * 2


def test_a_caller_that_leaves_stops_the_work_there():
    fake = FakeUpstream((*WHOLE[:1], 5.0, *WHOLE[1:]))

    async def run(address: str) -> None:
        upstream = Upstream("cloud", address)
        async with aclosing(upstream.answer(ASK)) as pieces:
            await anext(pieces)
        await asyncio.to_thread(until, lambda: fake.left)
        assert not upstream.breaker.is_open
        await upstream.close()

    with running(fake.app()) as address:
        asyncio.run(run(address))


def test_a_server_that_fails_often_is_left_alone():
    """Catches a breaker that never opens, never closes, or counts the caller's own mistakes."""
    now = [0.0]
    breaker = Breaker(2, 10, clock=lambda: now[0])
    errors = asked(NOBODY, ASK, ASK, breaker=breaker)
    assert [error.kind for error in errors] == ["open", "open"]
    assert breaker.is_open
    fake = FakeUpstream(status=[400, 200])
    with running(fake.app()) as address:
        assert asked(address, ASK, breaker=breaker)[0].kind == "open"
        assert fake.bodies == []
        now[0] = 11
        refused, answer = asked(address, ASK, ASK, breaker=breaker)
    assert (refused.kind, answer.text) == ("refused", "yes")
    assert not breaker.is_open


def test_the_start_says_what_is_wrong():
    async def start(address: str) -> None:
        upstream = Upstream("edge", address)
        try:
            await upstream.start()
        finally:
            await upstream.close()

    with pytest.raises(UserError, match=r"the edge cannot be reached \(http://127.0.0.1:9/v1\)"):
        asyncio.run(start(NOBODY))
    with running(FakeUpstream().app()) as address:
        asyncio.run(start(address))
        with pytest.raises(UserError, match="has no model 'other'; there are: fake"):
            asyncio.run(start(f"{address}#other"))
        with pytest.raises(UserError, match="status 404"):
            asyncio.run(start(address.replace("/v1", "/v2")))


@pytest.mark.parametrize(
    ("parts", "tells"),
    [(WHOLE, 1), ((chunk("yes"), *WHOLE[1:]), 0), ((chunk(None, "stop"), USAGE, DONE), 0)],
)
def test_whether_a_server_tells_log_probabilities(parts, tells):
    async def ask(address: str) -> int:
        upstream = Upstream("edge", address)
        found = len(await upstream.probe())
        await upstream.close()
        return found

    with running(FakeUpstream(parts).app()) as address:
        assert asyncio.run(ask(address)) == tells


@pytest.mark.parametrize(
    ("address", "root", "model"),
    [
        ("http://a:1/v1/", "http://a:1/v1", None),
        ("https://a#m/n", "https://a/v1", "m/n"),
        ("http://[::1]:80/x", "http://[::1]:80/x", None),
    ],
)
def test_addresses(address, root, model):
    assert split(address) == (root, model)


@pytest.mark.parametrize("address", ["http://", "http://a:x/v1", "http://[::1/v1", "ftp://a"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="expected an address"):
        split(address)
