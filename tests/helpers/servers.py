"""Servers in a thread of the test, on a free port: gateways, and upstreams that fail in known ways."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from shadowpeft.route.policy import Counts, Policy, RiskPromise
from shadowpeft.serve.app import Gateway, Served
from shadowpeft.serve.backend import Piece, Token, Usage
from shadowpeft.serve.errors import RequestError
from shadowpeft.serve.protocol import Ask
from shadowpeft.serve.run import bound


@contextlib.contextmanager
def running(app: Any, *backends: Any) -> Iterator[str]:
    """Run an application and its backends in a thread; return its address, which ends in /v1."""
    taken = bound("127.0.0.1", 0)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    failed: list[BaseException] = []

    async def life() -> None:
        try:
            for backend in backends:
                await backend.start()
            await server.serve(sockets=[taken])
        finally:
            for backend in backends:
                await backend.close()

    def run() -> None:
        try:
            asyncio.run(life())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or failed)
        if failed:
            raise failed[0]
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)
        taken.close()
    assert not failed, failed
    assert not thread.is_alive()


def until(is_so: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.01)


@contextlib.contextmanager
def client_of(address: str, key: str = "none") -> Iterator[openai.OpenAI]:
    """OpenAI's own client, which tries nothing twice."""
    with openai.OpenAI(base_url=address, api_key=key, max_retries=0, timeout=30) as client:
        yield client


def policy(threshold: float = -1.0, score: str = "min_logprob", **changes: Any) -> Policy:
    """A policy that keeps what scores at least the threshold."""
    values: dict[str, Any] = {
        "model": "tiny",
        "adapter": None,
        "adapter_hash": None,
        "data": "dev.jsonl",
        "data_hash": "0" * 64,
        "score": score,
        "deferral": None,
        "threshold": threshold,
        "knots": ((-4.0, 0.8), (0.0, 0.1)),
        "promise": RiskPromise(0.2, 0.95, 0.19),
        "counts": Counts(200, 100, 100, 60, 3, 40),
    }
    return Policy(**{**values, **changes})


def tokens_of(text: str, logprob: float) -> tuple[Token, ...]:
    """One token for each word, of which the last is as unsure as given and the others are sure."""
    words = text.split(" ")
    sure = [Token(f"{word} ", -0.01, ((word, -0.01), ("x", -5.0))) for word in words[:-1]]
    return (*sure, Token(words[-1], logprob, ((words[-1], logprob), ("x", logprob - 1))))


@dataclass
class Canned:
    """A backend that says what it was given, word by word.

    Attributes:
        text: the answer.
        logprob: of its last word.
        fails_before: a word before which it fails, by number.
        held: until it is set, no word is said from `held_from` on.
        held_from: a word, by number.
        asks: the requests that it got.
        said: how many words it said.
        closed: how many answers were closed before their end.
    """

    text: str = "yes"
    logprob: float = -0.1
    fails_before: int | None = None
    held: threading.Event | None = None
    held_from: int = 0
    error: RequestError = field(default_factory=lambda: RequestError("it is away", 503, code="away"))
    asks: list[Ask] = field(default_factory=list)
    said: int = 0
    closed: int = 0
    models: tuple[str, ...] = ("canned",)

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def answer(self, ask: Ask) -> AsyncGenerator[Piece, None]:
        """Say it."""
        self.asks.append(ask)
        tokens = tokens_of(self.text, self.logprob)
        is_done = False
        try:
            for index, token in enumerate(tokens):
                while self.held is not None and index >= self.held_from and not self.held.is_set():
                    await asyncio.sleep(0.01)
                if index == self.fails_before:
                    is_done = True
                    raise self.error
                self.said += 1
                told = () if ask.top is None else (token,)
                if index + 1 == len(tokens):
                    is_done = True
                    yield Piece(token.text, told, "stop", Usage(3, len(tokens)))
                else:
                    yield Piece(token.text, told)
        finally:
            self.closed += not is_done


def gateway_of(backend: Any, **settings: Any) -> Gateway:
    """A gateway before one backend."""
    return Gateway({name: Served(backend, name) for name in backend.models}, **settings)


def chunk(text: str | None, finish: str | None = None, **more: Any) -> bytes:
    """A chunk of a chat as OpenAI's servers send it."""
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


def logprobs(text: str, logprob: float = -0.1) -> dict[str, Any]:
    """The log-probabilities of one token of a chunk."""
    top = [{"token": text, "logprob": logprob}, {"token": "x", "logprob": logprob - 1}]
    return {"logprobs": {"content": [{"token": text, "logprob": logprob, "top_logprobs": top}]}}


USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = (chunk("yes", **logprobs("yes")), chunk(None, "stop"), USAGE, DONE)


@dataclass
class FakeUpstream:
    """A server that answers from a script.

    Attributes:
        parts: of the stream; a number is a pause in seconds, and `None` breaks the connection.
        status: of its replies, one for each request; the last one stays.
        bodies: what it was asked.
        begun: how many parts it came to.
        left: how many callers left before the end.
    """

    parts: tuple[bytes | float | None, ...] = WHOLE
    status: list[int] = field(default_factory=lambda: [200])
    content_type: str = "text/event-stream"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    begun: int = 0
    left: int = 0

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._answer, methods=["POST"]),
            Route("/v1/completions", self._answer, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def _models(self, request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": "fake"}]})

    async def _answer(self, request: Request) -> Any:
        self.bodies.append(await request.json())
        status = self.status[0] if len(self.status) == 1 else self.status.pop(0)
        if status != 200:
            return JSONResponse({"error": {"message": f"status {status}"}}, status)
        return StreamingResponse(self._parts(), media_type=self.content_type)

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        try:
            for part in self.parts:
                self.begun += 1
                if part is None:
                    raise ConnectionResetError("as the script has it")
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    yield part
        except (asyncio.CancelledError, GeneratorExit):
            self.left += 1
            raise
