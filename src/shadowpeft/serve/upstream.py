"""The backend that asks a server elsewhere, which speaks OpenAI's protocol."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2 as httpx

from shadowpeft.errors import ConfigError, UserError
from shadowpeft.serve.backend import Piece, Token, Usage
from shadowpeft.serve.breaker import CONNECT, PAUSE, TRIES, Breaker
from shadowpeft.serve.errors import UpstreamError
from shadowpeft.serve.metrics import Metrics
from shadowpeft.serve.protocol import Ask
from shadowpeft.serve.sse import Broken, events_of, piece_of, said

# Statuses after which another try may succeed.
_AGAIN = frozenset((429, 502, 503, 504))


class Upstream:
    """Answers by a server elsewhere. The connection is closed where nobody listens, which stops its work.

    Args:
        role: what it is called here, such as `cloud`.
        address: of the server, such as http://127.0.0.1:8080/v1, with #NAME for one of its models.
        key: what is shown to it.
        seconds: how long it may be silent.
        metrics: counts failures.
        breaker: leaves it alone for a while when it failed several times.
    """

    def __init__(
        self,
        role: str,
        address: str,
        key: str | None = None,
        seconds: float = 60.0,
        metrics: Metrics | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        self.role, (self.address, self._model) = role, split(address)
        self._metrics, self.breaker = metrics or Metrics(), breaker or Breaker()
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        timeout = httpx.Timeout(seconds, connect=min(CONNECT, seconds))
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)

    @property
    def models(self) -> tuple[str, ...]:
        """Its one name here."""
        return (self.role,)

    @property
    def is_well(self) -> bool:
        """Whether it answered of late."""
        return not self.breaker.is_open

    async def start(self) -> None:
        """Ask for its models.

        Raises:
            UserError: it cannot be reached, or has no model of the name.
        """
        try:
            await self._find_model()
        except UpstreamError as error:
            raise UserError(f"{error.message} ({self.address})") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Answer a request, as `Backend.answer`. It is sent again only while no byte of an answer has come.

        Raises:
            UpstreamError: the server is away, or does not answer as it must.
        """
        for attempt in range(TRIES):
            if not self.breaker.lets_in():
                raise self._error("failed several times and is left alone for some seconds", 503, "open")
            # From then on another try could answer twice.
            begun = False
            try:
                async with aclosing(self._once(ask)) as pieces:
                    async for piece in pieces:
                        begun = True
                        yield piece
                self.breaker.succeeded()
                return
            except UpstreamError as error:
                self._note(error)
                if begun or not error.again or attempt + 1 == TRIES:
                    raise
            except BaseException:
                self.breaker.abandoned()
                raise
            # Not all at once, where many were refused together.
            await asyncio.sleep(random.uniform(0, PAUSE * 2**attempt))

    async def probe(self) -> list[Token]:
        """Ask for one token; return what is told of it, nothing if there are no log-probabilities.

        Raises:
            UpstreamError: it does not answer.
        """
        ask = Ask(messages=({"role": "user", "content": "Hello"},), max_tokens=1, temperature=0.0, top=2)
        try:
            async with aclosing(self.answer(ask)) as pieces:
                return [token async for piece in pieces for token in piece.tokens]
        except UpstreamError as error:
            if error.kind == "no_logprobs":
                return []
            raise

    def _note(self, error: UpstreamError) -> None:
        self._metrics.upstream.labels(self.role, error.kind).inc()
        # A request that it refuses, or tokens without log-probabilities, are no sign that it is away.
        if error.status < 500 or error.kind == "no_logprobs":
            self.breaker.succeeded()
        else:
            self.breaker.failed()

    async def _once(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Ask once."""
        if self._model is None:
            await self._find_model()
        path, body = self._request(ask)
        try:
            async with self._client.stream("POST", f"{self.address}{path}", json=body) as response:
                await self._check(response)
                async with aclosing(_joined(response.aiter_bytes(), ask)) as pieces:
                    async for piece in pieces:
                        yield piece
        except Broken as broken:
            raise self._error(broken.what, 502, broken.kind) from None
        except httpx.TimeoutException as error:
            is_connect = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
            raise self._error("did not answer in time", 504, "timeout", again=is_connect) from None
        except httpx.ConnectError:
            raise self._error("cannot be reached", 503, "unreachable", again=True) from None
        except httpx.HTTPError as error:
            kind = type(error).__name__
            raise self._error(f"broke off ({kind})", 502, "cut", again=True) from None

    def _request(self, ask: Ask) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self._model,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        given = {"max_tokens": ask.max_tokens, "seed": ask.seed, "stop": list(ask.stop) or None}
        body |= {name: value for name, value in given.items() if value is not None}
        if not ask.is_chat:
            body["prompt"] = list(ask.prompt) if isinstance(ask.prompt, tuple) else f"{ask.prompt}{ask.begun}"
            if ask.top is not None:
                body["logprobs"] = ask.top
            return "/completions", body
        body["messages"] = [dict(message) for message in ask.messages]
        if ask.begun:
            # By vLLM's names, which this gateway takes, too.
            body["messages"].append({"role": "assistant", "content": ask.begun})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        if ask.top is not None:
            body |= {"logprobs": True, "top_logprobs": ask.top}
        return "/chat/completions", body

    async def _check(self, response: httpx.Response) -> None:
        """Refuse a reply that is no stream of events."""
        if response.status_code == 200:
            kind = response.headers.get("content-type", "")
            if not kind.startswith("text/event-stream"):
                raise self._error(f"sent {kind[:64] or 'something'} in place of a stream", 502, "garbage")
            return
        # As much of it as a message has room for.
        body = b""
        async for part in response.aiter_bytes():
            body += part
            if len(body) > 10_000:
                break
        status, message = response.status_code, _message(body)
        if status in (400, 404, 413, 422):
            # The caller's request, which no other try can mend.
            raise self._error(f"refused the request: {message}", 400, "refused")
        is_away = status in _AGAIN
        raise self._error(
            f"answered with status {status}: {message}", 503 if is_away else 502, "status", again=is_away
        )

    async def _find_model(self) -> None:
        """Choose its model: the one that was named, or its first."""
        try:
            response = await self._client.get(f"{self.address}/models")
        except httpx.TimeoutException:
            raise self._error("did not answer in time", 504, "timeout") from None
        except httpx.HTTPError:
            raise self._error("cannot be reached", 503, "unreachable", again=True) from None
        if response.status_code != 200:
            raise self._error(
                f"answered with status {response.status_code}: {_message(response.content[:10_000])}",
                503 if response.status_code in _AGAIN else 502,
                "status",
                again=response.status_code in _AGAIN,
            )
        try:
            names = [str(each["id"]) for each in response.json()["data"]]
        except (KeyError, TypeError, ValueError):
            raise self._error("sent no list of models; give an address that ends in /v1") from None
        if not names:
            raise self._error("has no model")
        if self._model is not None and self._model not in names:
            raise self._error(f"has no model {self._model!r}; there are: {', '.join(names)[:300]}")
        self._model = self._model or names[0]

    def _error(
        self, what: str, status: int = 502, kind: str = "garbage", again: bool = False
    ) -> UpstreamError:
        return UpstreamError(f"the {self.role} {what}", status, kind, again)


def split(address: str) -> tuple[str, str | None]:
    """Split an address into that of the protocol's root and the name of a model, if there is one.

    Raises:
        ConfigError: it is no address.
    """
    try:
        parts = urlsplit(address)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        has_host = False
    if not has_host or parts.scheme not in ("http", "https"):
        raise ConfigError(f"expected an address such as http://127.0.0.1:8080/v1, got {address!r}")
    path = parts.path.rstrip("/") or "/v1"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), parts.fragment or None


async def _joined(parts: AsyncIterator[bytes], ask: Ask) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of a stream; the end and the count of tokens, which come apart, as one piece."""
    last: Piece | None = None
    usage: Usage | None = None
    tokens = 0
    async for event in events_of(parts):
        piece = piece_of(event)
        usage = piece.usage or usage
        tokens += len(piece.tokens) or bool(piece.text)
        if ask.top is not None and piece.text and not piece.tokens:
            raise Broken("gives no log-probabilities of its tokens", "no_logprobs")
        if piece.finish is not None:
            last = replace(piece, usage=None)
        elif piece.text or piece.tokens:
            yield replace(piece, usage=None, tokens=_as_asked(piece.tokens, ask))
    if last is None:
        raise Broken("broke off in the middle of its answer", "cut")
    yield replace(last, usage=usage or Usage(0, tokens), tokens=_as_asked(last.tokens, ask))


def _as_asked(tokens: tuple[Token, ...], ask: Ask) -> tuple[Token, ...]:
    return () if ask.top is None else tokens


def _message(body: bytes) -> str:
    try:
        return said(json.loads(body))
    except (ValueError, RecursionError):
        return "no message that could be read"
