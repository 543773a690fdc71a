"""The backend of two roles: the edge answers, and the cloud where the policy does not trust the edge."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from shadowpeft.errors import DataError
from shadowpeft.route.policy import Decision, Policy
from shadowpeft.route.scores import TokenScores, kind_of, score
from shadowpeft.serve.answers import joined
from shadowpeft.serve.backend import Backend, Piece, Token
from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.metrics import Metrics
from shadowpeft.serve.protocol import Ask

# The likeliest tokens that a score reads: the first and the second.
_TOP = 2


@dataclass(frozen=True)
class Role:
    """A model that plays the edge or the cloud.

    Attributes:
        backend: who answers.
        name: what the backend calls it.
    """

    backend: Backend
    name: str

    def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Answer by this model."""
        return self.backend.answer(replace(ask, model=self.name))


@dataclass(frozen=True)
class Rules:
    """How two roles share the work.

    Attributes:
        on_cloud_failure: give the edge's answer with a note, or refuse by 503.
        hand_over: the cloud continues the edge's text from its least sure token on.
        hold: most tokens that a stream holds back until it is decided who answers.
    """

    on_cloud_failure: Literal["answer", "503"] = "answer"
    hand_over: bool = False
    hold: int = 256


class Routed:
    """Answers by the edge or the cloud. What a caller has read is never taken back.

    Args:
        edge: answers first.
        cloud: answers where the edge is not sure enough.
        policy: says when it is.
        rules: how the two share the work.
        metrics: counts routes.
    """

    def __init__(
        self,
        edge: Role,
        cloud: Role,
        policy: Policy,
        rules: Rules | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._edge, self._cloud, self.policy = edge, cloud, policy
        self._rules, self._metrics = rules or Rules(), metrics or Metrics()
        kind = kind_of(policy.score)
        # Whether a beginning can already be too unsure, whatever follows.
        self._falls = kind.falls and kind.needs != "deferral"

    @property
    def models(self) -> tuple[str, ...]:
        """Its one name."""
        return ("routed",)

    async def start(self) -> None:
        """Do nothing: its roles are started by themselves."""

    async def close(self) -> None:
        """Do nothing: its roles are closed by themselves."""

    def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Answer a request, as `Backend.answer`; `ask.route` says who may."""
        if ask.route == "cloud":
            return self._noted(self._cloud.answer(ask), _Notes("cloud", "forced"))
        if ask.route == "local-only":
            return self._edge_alone(ask, "local-only")
        if ask.route == "edge":
            return self._edge_first(ask)
        return self._decided(ask)

    async def _edge_alone(self, ask: Ask, reason: str) -> AsyncGenerator[Piece, None]:
        """Let the edge answer, whatever its score, which comes with the last piece."""
        seen: list[Piece] = []
        pieces = self._noted(self._edge.answer(self._scored(ask)), _Notes("edge", reason))
        async with aclosing(pieces):
            async for piece in pieces:
                seen.append(piece)
                if piece.finish is not None:
                    # Nothing hangs on the score here, so that the answer stands without one, too.
                    with suppress(DataError):
                        piece = replace(piece, notes={**piece.notes, **_told(self._decision(seen))})
                yield _as_asked(piece, ask)

    async def _edge_first(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Let the edge answer, and the cloud if it cannot."""
        begun = False
        try:
            async with aclosing(self._edge_alone(ask, "forced")) as pieces:
                async for piece in pieces:
                    begun = True
                    yield piece
            return
        except RequestError:
            if begun:
                raise
        async with aclosing(self._noted(self._cloud.answer(ask), _Notes("cloud", "edge-failed"))) as pieces:
            async for piece in pieces:
                yield piece

    async def _decided(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Let the edge answer unheard, until it is decided whose answer is given."""
        began, decision = time.perf_counter(), None
        held: list[Piece] = []

        def notes_of(route: str, reason: str) -> _Notes:
            return _Notes(route, reason, decision, time.perf_counter() - began, len(_tokens(held)))

        try:
            async with aclosing(self._edge.answer(self._scored(ask))) as pieces:
                async for piece in pieces:
                    held.append(piece)
                    decision = self._so_far(held, ask)
                    if decision is not None:
                        break
                if decision is not None and decision.route == "edge":
                    self._count("edge", "kept")
                    yield _as_asked(_with(joined(held), notes_of("edge", "kept")), ask)
                    if held[-1].finish is None:
                        async for piece in pieces:
                            yield _as_asked(piece, ask)
                    return
        # An answer that cannot be judged is as good as none.
        except (RequestError, DataError):
            if decision is not None:
                raise
        notes = _Notes("cloud", "edge-failed") if decision is None else notes_of("cloud", "deferred")
        async with aclosing(self._deferred(ask, held, notes)) as pieces:
            async for piece in pieces:
                yield piece

    async def _deferred(self, ask: Ask, held: list[Piece], notes: "_Notes") -> AsyncGenerator[Piece, None]:
        """Let the cloud answer; where it is away, do as the rules say."""
        begun = False
        try:
            pieces = self._noted(self._from_cloud(ask, held, notes), notes)
            async with aclosing(pieces):
                # Nobody reads along, so that all of it can still be replaced.
                if not ask.stream:
                    whole = [piece async for piece in pieces]
                    begun = True
                    yield joined(whole)
                    return
                async for piece in pieces:
                    begun = True
                    yield piece
            return
        except RequestError as error:
            # A request that the cloud refuses would be no better answered by the edge.
            if begun or error.status < 500 or notes.decision is None:
                raise
            if self._rules.on_cloud_failure == "503":
                raise RequestError(
                    f"the edge is not sure enough of its answer, and {error.message}",
                    503,
                    code="cloud_away",
                    retry_after=5,
                ) from error
        instead = replace(notes, route="edge", reason="cloud-failed")
        if held[-1].finish is not None:
            self._count("edge", "cloud-failed")
            yield _as_asked(_with(joined(held), instead), ask)
            return
        async with aclosing(self._noted(self._edge.answer(ask), instead)) as pieces:
            async for piece in pieces:
                yield piece

    async def _from_cloud(self, ask: Ask, held: list[Piece], notes: "_Notes") -> AsyncGenerator[Piece, None]:
        """Yield the cloud's answer, or the edge's beginning and how the cloud goes on."""
        kept = _sure_beginning(held) if self._rules.hand_over and notes.decision is not None else []
        left = None if ask.max_tokens is None else ask.max_tokens - len(kept)
        # Text cannot be put behind token ids, and a continuation needs room.
        if not kept or isinstance(ask.prompt, tuple) or (left is not None and left < 1):
            kept, left = [], ask.max_tokens
        text, is_told = "".join(token.text for token in kept), False
        continued = replace(ask, begun=ask.begun + text, max_tokens=left)
        async with aclosing(self._cloud.answer(continued)) as pieces:
            async for piece in pieces:
                if kept and not is_told:
                    # With the cloud's first piece, and not before: until then the cloud may fail.
                    is_told = True
                    yield _as_asked(Piece(text, tuple(kept), notes={"handed_over": len(kept)}), ask)
                if piece.usage is not None:
                    completion = piece.usage.completion + len(kept)
                    piece = replace(piece, usage=replace(piece.usage, completion=completion))
                yield piece

    async def _noted(
        self, pieces: AsyncGenerator[Piece, None], notes: "_Notes"
    ) -> AsyncGenerator[Piece, None]:
        """Put notes on the first piece, and count the route."""
        counted = False
        async with aclosing(pieces):
            async for piece in pieces:
                if not counted:
                    counted = True
                    self._count(notes.route, notes.reason)
                    piece = _with(piece, notes)
                yield piece

    def _scored(self, ask: Ask) -> Ask:
        """Return a request to the edge, with the log-probabilities that a score reads."""
        # Token by token, if an answer may be given up before its end.
        return replace(ask, top=max(ask.top or 0, _TOP), stream=ask.stream or self._falls)

    def _so_far(self, held: Sequence[Piece], ask: Ask) -> Decision | None:
        """Return the decision, `None` while there is none."""
        tokens = _tokens(held)
        is_held_enough = ask.stream and len(tokens) >= self._rules.hold
        if held[-1].finish is not None or is_held_enough:
            return self._decision(held)
        if self._falls and tokens:
            found = score(self.policy.score, scores_of(tokens), "")
            if found < self.policy.threshold:
                return Decision("cloud", found, self.policy.error_probability(found), self.policy.threshold)
        return None

    def _decision(self, pieces: Sequence[Piece]) -> Decision:
        return self.policy.decide(scores_of(_tokens(pieces)), "".join(piece.text for piece in pieces))

    def _count(self, route: str, reason: str) -> None:
        self._metrics.routes.labels(route, reason).inc()


@dataclass(frozen=True)
class _Notes:
    """What is told of an answer: who gave it and why, and what the edge's was worth."""

    route: str
    reason: str
    decision: Decision | None = None
    seconds: float | None = None
    tokens: int | None = None

    def all(self) -> dict[str, Any]:
        notes: dict[str, Any] = {"route": self.route, "reason": self.reason}
        if self.decision is not None:
            notes |= _told(self.decision)
        if self.seconds is not None:
            notes["edge_milliseconds"] = round(1000 * self.seconds, 1)
        if self.tokens is not None:
            notes["edge_tokens"] = self.tokens
        return notes


def _told(decision: Decision) -> dict[str, Any]:
    # JSON has no infinity, which is the score of an answer without a token.
    found = max(decision.score, -1e9)
    return {
        "score": round(found, 6),
        "threshold": round(decision.threshold, 6),
        "error_probability": round(decision.error_probability, 6),
    }


def _with(piece: Piece, notes: _Notes) -> Piece:
    return replace(piece, notes={**piece.notes, **notes.all()})


def _as_asked(piece: Piece, ask: Ask) -> Piece:
    """Return a piece with no more of the edge's log-probabilities than the caller asked for."""
    if ask.top is None:
        return replace(piece, tokens=())
    return replace(piece, tokens=tuple(replace(token, top=token.top[: ask.top]) for token in piece.tokens))


def _tokens(pieces: Sequence[Piece]) -> list[Token]:
    return [token for piece in pieces for token in piece.tokens if token.logprob is not None]


def scores_of(tokens: Sequence[Token]) -> TokenScores:
    """Return what a policy reads of an answer's tokens."""
    logprobs = [token.logprob for token in tokens if token.logprob is not None]
    margins = [token.top[0][1] - token.top[1][1] for token in tokens if len(token.top) >= _TOP]
    entropies = [token.entropy for token in tokens if token.entropy is not None]
    return TokenScores(
        logprobs,
        margins if len(margins) == len(tokens) else None,
        entropies if len(entropies) == len(tokens) else None,
    )


def _sure_beginning(held: Sequence[Piece]) -> list[Token]:
    """Return the tokens before the least sure one, which the cloud may go on from."""
    tokens = _tokens(held)
    if not tokens:
        return []
    least = min(range(len(tokens)), key=lambda index: tokens[index].logprob or 0.0)
    kept = tokens[:least]
    # No more than whole characters, and no end.
    while kept and (not kept[-1].text or kept[-1].is_silent):
        kept.pop()
    return kept
