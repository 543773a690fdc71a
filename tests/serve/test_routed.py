"""Edge and cloud: who answers, and what becomes of a request when one of them fails."""

import asyncio
import dataclasses
import math
import threading
from contextlib import aclosing
from typing import Any

import pytest
from helpers.servers import Canned, policy

from shadowpeft.serve.answers import joined
from shadowpeft.serve.backend import Piece, Token
from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.metrics import Metrics
from shadowpeft.serve.protocol import Ask
from shadowpeft.serve.routed import Role, Routed, Rules, scores_of

ASK = Ask(messages=({"role": "user", "content": "what"},), max_tokens=50)
EDGE, CLOUD = "the edge says so", "the cloud knows it"
SURE, UNSURE = -0.1, -3.0


def pair(logprob: float = SURE, edge: dict[str, Any] | None = None, cloud: dict[str, Any] | None = None):
    return Canned(EDGE, logprob, **(edge or {})), Canned(CLOUD, **(cloud or {}))


def ask(
    edge: Canned, cloud: Canned, request: Ask = ASK, score: str = "min_logprob", **rules: Any
) -> list[Piece]:
    """Ask once; return the pieces."""

    async def run() -> list[Piece]:
        routed = Routed(Role(edge, "e"), Role(cloud, "c"), policy(score=score), Rules(**rules), metrics)
        async with aclosing(routed.answer(request)) as pieces:
            return [piece async for piece in pieces]

    metrics = Metrics()
    found = asyncio.run(run())
    assert sum(piece.finish is not None for piece in found) == 1
    notes = joined(found).notes
    # Each answer is counted once, by its route.
    assert metrics.value("routes_total", route=notes["route"], reason=notes["reason"]) == 1
    return found


def streamed(route: str = "auto", **changes: Any) -> Ask:
    return dataclasses.replace(ASK, stream=True, route=route, **changes)


@pytest.mark.parametrize("request_", [ASK, streamed()], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("logprob", "text", "route", "reason"),
    [(SURE, EDGE, "edge", "kept"), (UNSURE, CLOUD, "cloud", "deferred")],
)
def test_the_policy_decides(request_, logprob, text, route, reason):
    """Catches an answer of both, a decision the other way round, and notes of another answer."""
    edge, cloud = pair(logprob)
    answer = joined(ask(edge, cloud, request_))
    assert answer.text == text
    assert answer.notes["route"], answer.notes["reason"] == (route, reason)
    assert (answer.notes["score"], answer.notes["threshold"]) == (logprob, -1.0)
    assert answer.notes["error_probability"] == pytest.approx(0.1 - 0.175 * logprob)
    assert len(cloud.asks) == (route == "cloud")
    # The caller asked for no tokens; the score needs them.
    assert answer.tokens == ()
    assert edge.asks[0].top == 2


def test_the_caller_gets_the_tokens_that_it_asked_for():
    edge, cloud = pair()
    assert [token.top for token in joined(ask(edge, cloud, dataclasses.replace(ASK, top=1))).tokens] == [
        (token.top[0],) for token in (Token("the ", -0.01, (("the", -0.01),)),)
    ] + [(("edge", -0.01),), (("says", -0.01),), (("so", SURE),)]


@pytest.mark.parametrize(
    ("route", "text", "asked"), [("edge", EDGE, 0), ("local-only", EDGE, 0), ("cloud", CLOUD, 1)]
)
def test_the_caller_may_choose(route, text, asked):
    """Catches a request that is sent away although its caller forbade it."""
    edge, cloud = pair(UNSURE)
    answer = joined(ask(edge, cloud, streamed(route)))
    assert answer.text == text
    assert len(cloud.asks) == asked
    assert len(edge.asks) == 1 - asked
    assert answer.notes["reason"] == ("local-only" if route == "local-only" else "forced")
    assert ("score" in answer.notes) == (route != "cloud")


@pytest.mark.parametrize("fails", [0, 1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_may_not_leave_does_not_on_failure(fails, stream):
    edge, cloud = pair(edge={"fails_before": fails})
    with pytest.raises(RequestError, match="it is away"):
        ask(edge, cloud, dataclasses.replace(ASK, route="local-only", stream=stream))
    assert cloud.asks == []


@pytest.mark.parametrize("route", ["auto", "edge"])
def test_the_cloud_answers_where_the_edge_cannot(route):
    edge, cloud = pair(edge={"fails_before": 0})
    answer = joined(ask(edge, cloud, streamed(route)))
    assert (answer.text, answer.notes) == (CLOUD, {"route": "cloud", "reason": "edge-failed"})


def test_an_edge_without_log_probabilities_is_not_trusted():
    """Catches an answer that is kept although nothing is known of it."""
    edge, cloud = pair()
    edge.answer = lambda request: Canned.answer(edge, dataclasses.replace(request, top=None))
    answer = joined(ask(edge, cloud, ASK))
    # Without a token there is nothing to be sure of.
    assert answer.text == CLOUD
    edge, cloud = pair()
    assert joined(ask(edge, cloud, ASK, score="max_entropy")).notes == {
        "route": "cloud",
        "reason": "edge-failed",
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("score", ["min_logprob", "mean_logprob"])
def test_the_cloud_is_away(stream, score):
    """Catches a request that is lost, and an answer of the edge that passes for a sure one."""
    request = dataclasses.replace(ASK, stream=stream)
    for fails in (0, 1):
        edge, cloud = pair(-9.0, cloud={"fails_before": fails})
        if stream and fails:
            # Its beginning has been read.
            with pytest.raises(RequestError, match="it is away"):
                ask(edge, cloud, request, score)
            continue
        answer = joined(ask(edge, cloud, request, score))
        assert answer.text == EDGE
        assert (answer.notes["route"], answer.notes["reason"]) == ("edge", "cloud-failed")
        assert answer.notes["score"] < answer.notes["threshold"]
    edge, cloud = pair(-9.0, cloud={"fails_before": 0})
    with pytest.raises(RequestError, match="not sure enough of its answer, and it is away") as caught:
        ask(edge, cloud, request, score, on_cloud_failure="503")
    assert (caught.value.status, caught.value.code) == (503, "cloud_away")


def test_a_request_that_the_cloud_refuses_is_refused():
    edge, cloud = pair(UNSURE, cloud={"fails_before": 0, "error": RequestError("too long", 400)})
    with pytest.raises(RequestError, match="too long"):
        ask(edge, cloud)


def test_a_stream_is_held_back_until_the_decision():
    """Catches text of the edge that is read before it is decided, and a stream that is held for ever."""
    edge, cloud = pair()
    pieces = ask(edge, cloud, streamed(), hold=2)
    assert [piece.text for piece in pieces] == ["the edge ", "says ", "so"]
    assert pieces[0].notes["edge_tokens"] == 2
    # The unsure word comes after the decision.
    edge, cloud = pair(UNSURE)
    assert joined(ask(edge, cloud, streamed(), hold=2)).text == EDGE
    edge, cloud = pair(UNSURE)
    assert joined(ask(edge, cloud, ASK, hold=2)).text == CLOUD


@pytest.mark.parametrize(("score", "closed"), [("min_logprob", 1), ("mean_logprob", 0)])
def test_an_edge_that_is_too_unsure_already_is_stopped(score, closed):
    """Catches work for an answer that is given up, and one given up by a score that may still rise."""
    edge = Canned("x y z", SURE)
    edge.text, cloud = "one two three", Canned(CLOUD)
    first = [Piece("one ", (Token("one ", -5.0, (("one", -5.0), ("x", -6.0))),))]

    async def answer(request):
        for piece in first:
            yield piece
        async with aclosing(Canned.answer(edge, request)) as rest:
            async for piece in rest:
                yield piece

    wrapped = Canned()
    wrapped.answer = answer
    found = joined(ask(wrapped, cloud, streamed(), score))
    assert found.text == (CLOUD if closed else found.text)
    assert len(edge.asks) == 1 - closed


def test_the_cloud_continues_what_was_sure():
    """Catches an unsure token that is handed over, text that comes twice, and a limit that grows."""
    edge, cloud = pair(UNSURE)
    pieces = ask(edge, cloud, streamed(), hand_over=True)
    assert joined(pieces).text == "the edge says " + CLOUD
    assert (cloud.asks[0].begun, cloud.asks[0].max_tokens) == ("the edge says ", 47)
    assert joined(pieces).notes["handed_over"] == 3
    assert joined(pieces).usage.completion == 3 + 4
    # From what follows, the cloud's failure is still the edge's answer.
    edge, cloud = pair(UNSURE, cloud={"fails_before": 0})
    answer = joined(ask(edge, cloud, streamed(), hand_over=True))
    assert (answer.text, answer.notes["reason"]) == (EDGE, "cloud-failed")


@pytest.mark.parametrize("changes", [{"prompt": (1, 2), "messages": ()}, {"max_tokens": 3}])
def test_where_nothing_can_be_continued_the_cloud_begins(changes):
    edge, cloud = pair(UNSURE)
    assert joined(ask(edge, cloud, streamed(**changes), hand_over=True)).text == CLOUD
    assert cloud.asks[0].begun == ""


def test_a_caller_that_leaves_stops_both():
    async def run(logprob: float) -> tuple[int, int]:
        # One word is held back, the next one comes, and no more.
        edge, cloud = Canned(EDGE, logprob, held=threading.Event(), held_from=2), Canned(CLOUD)
        routed = Routed(Role(edge, "e"), Role(cloud, "c"), policy(), Rules(hold=1))
        async with aclosing(routed.answer(streamed())) as pieces:
            await anext(pieces)
        return edge.closed, cloud.closed

    assert asyncio.run(run(SURE)) == (1, 0)
    edge, cloud = Canned("no", UNSURE), Canned(CLOUD, held=threading.Event(), held_from=1)

    async def leave() -> None:
        routed = Routed(Role(edge, "e"), Role(cloud, "c"), policy())
        async with aclosing(routed.answer(streamed())) as pieces:
            await anext(pieces)

    asyncio.run(leave())
    assert cloud.closed == 1


def test_what_a_score_reads():
    """Catches a margin that is missing and counted as none."""
    told = Token("a", -1.0, (("a", -1.0), ("b", -3.0)), 0.5)
    found = scores_of([told, told])
    assert (found.logprobs, found.margins, found.entropies) == ([-1.0, -1.0], [2.0, 2.0], [0.5, 0.5])
    found = scores_of([told, Token("b", -1.0, (("b", -1.0),))])
    assert (found.margins, found.entropies) == (None, None)


def test_a_score_without_end_can_be_told():
    """Catches an infinity in a header or body, which is no JSON."""
    edge, cloud = Canned("", SURE), Canned(CLOUD)

    async def nothing(request):
        yield Piece(finish="stop")

    edge.answer = nothing
    notes = joined(ask(edge, cloud)).notes
    assert notes["route"] == "cloud"
    assert math.isfinite(notes["score"])
